"""What each recipe's weighting costs in a whole training step, side by side in one process.

    python benchmarks/weightings.py --config configs/local.yaml \
        recipes/mtp_baseline.yaml recipes/rho1_wmtp_weighted.yaml recipes/critic_wmtp.yaml

Every recipe is assembled as for training. Rounds go through all of them in turn, so that a busy
machine is busy for each; the figure is the least processor time over the rounds of one optimizer
step on the recipe's first rows, and its ratio to the first recipe's. Nothing is kept.
"""

import argparse
import time
from contextlib import ExitStack
from datetime import date

from wmtp.config_check import load_settings
from wmtp.job import Job, assembled
from wmtp.step import learn, set_in_motion, share_of, update


def main() -> None:
    """Read the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="+", help="the first one is what others are held against")
    parser.add_argument("--config", help="YAML file of this machine")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    settings = [
        load_settings(given.config, recipe, overrides=tuple(given.overrides))
        for recipe in given.recipes
    ]
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(assembled(one, lambda line: print(f"  {line}"))) for one in settings
        ]
        seconds = measure(jobs, given.rounds)
        device = jobs[0].device.name
        rows = [(job.settings.recipe.run.name, job.value_head is not None) for job in jobs]
    print(f"\n{date.today()}, {device}, least of {given.rounds} rounds\n")
    print("| recipe | processor seconds a step | over the first | value head |")
    print("|---|---|---|---|")
    for (name, has_head), mine in zip(rows, seconds, strict=True):
        head = "yes" if has_head else ""
        print(f"| {name} | {mine:.2f} | {mine / seconds[0]:.3f} | {head} |")


def measure(jobs: list[Job], rounds: int) -> list[float]:
    """Least processor time of a step of each job; the first round only warms up."""
    least = [float("inf")] * len(jobs)
    moving = [set_in_motion(job) for job in jobs]
    for round_ in range(rounds + 1):
        for index, job in enumerate(jobs):
            count = len(job.share.sizes)
            job.model.train()
            with job.training_batches(start_row=round_ * job.rows_per_step) as batches:
                step = [next(batches) for _ in range(count)]
            job.device.synchronize()
            started = time.process_time()
            share = share_of(job, moving[index], step)
            for batch in step:
                learn(job, moving[index], batch.to(job.device.torch_device), share)
            update(job, moving[index])
            job.device.synchronize()
            if round_:
                least[index] = min(least[index], time.process_time() - started)
    return least


if __name__ == "__main__":
    main()
