"""What checkpoints cost: verifying and writing 1 GB, and their share of a whole run.

    python benchmarks/saving.py [--steps 200 --interval 100 --hidden 256 --layers 4]

The run is a real one (``wmtp train``, on the text of Python's own sources), first saving in the
loop and then behind it. Its share is measured inside it, not by comparing two runs, whose steps
differ by more than that on a busy machine: the time for which the loop stood still for saves, and
the processor time of saving, the thread behind it and its hashing included, each divided by that
of the whole loop.
"""

import argparse
import contextlib
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

GIGABYTE = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("steps", 200), ("interval", 100), ("hidden", 256), ("layers", 4),
                          ("rows", 1), ("length", 256)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        verify_one_gigabyte(Path(place))
        print("\n| saving | checkpoint | a step | a save stands still | share of wall time "
              "| share of CPU time |\n|---|---|---|---|---|---|")  # fmt: skip
        for asynchronous in (False, True):
            print(run(Path(place), options, asynchronous=asynchronous), flush=True)
        print(f"\n{start_of_a_resumed_run(Path(place))}")


def verify_one_gigabyte(place: Path) -> None:
    """A model of a third and its optimizer's state of two thirds, as a checkpoint has them."""
    from wmtp.checkpoints import checkpoint
    from wmtp.checkpoints.checkpoint import find_damage, write_folder

    folder = place / "step-00000001"
    block = bytes(range(256)) * 4096

    def fill(target: Path) -> None:
        for name, blocks in (("model", GIGABYTE // 3), ("state", GIGABYTE * 2 // 3)):
            with (target / name).open("wb") as file:
                for _ in range(blocks // len(block)):
                    file.write(block)

    timed: dict[str, float] = {}
    real = checkpoint._write_manifest

    def write_manifest(*arguments: Any) -> None:
        started = time.perf_counter()
        real(*arguments)
        timed["its manifest"] = time.perf_counter() - started

    checkpoint._write_manifest = write_manifest
    started = time.perf_counter()
    write_folder(folder, 1, fill)
    timed = {"written, with fsync": time.perf_counter() - started, **timed}
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        if find_damage(folder) is not None:
            sys.exit("the checkpoint is damaged")
        seconds.append(time.perf_counter() - started)
    timed["verified (median of 3)"] = statistics.median(seconds)
    shutil.rmtree(folder)
    print("| 1 GB | seconds |\n|---|---|")
    for what, taken in timed.items():
        print(f"| {what} | {taken:.2f} |")


def run(place: Path, options: argparse.Namespace, *, asynchronous: bool) -> str:
    """Train, and return a row of the table."""
    from wmtp import step, train
    from wmtp.checkpoints.checkpoint import list_checkpoints
    from wmtp.cli import app

    name = "behind the loop" if asynchronous else "in the loop"
    config = {
        "paths": {"checkpoints": {"base_path": str(place), "save_interval": options.interval,
                                  "asynchronous": asynchronous, "save_final": False}},
        "devices": {"compute_backend": "cpu"},
        "mlflow": {"enabled": False},
        "log_interval": options.interval,
    }  # fmt: skip
    recipe = {
        "model": {"hidden_size": options.hidden, "num_layers": options.layers,
                  "num_heads": options.hidden // 64, "heads": {"horizon": 4}},
        "data": {"tokenizer": tokenizer(place), "train": {
            "sources": ["python-stdlib"], "max_length": options.length, "batch_size": options.rows,
        }},
        "weighting": {"algorithm": "baseline-mtp"},
        "train": {"max_steps": options.steps},
    }  # fmt: skip
    for file, values in (("config.yaml", config), ("recipe.yaml", recipe)):
        (place / file).write_text(yaml.safe_dump(values))

    clock, saver_type = Clock(), train.Saver
    real_update, real_snapshot, real_save = step.update, train.take_snapshot, saver_type.save
    real_wait = saver_type.wait
    step.update = clock.marking(real_update)
    train.take_snapshot = clock.counting(real_snapshot)
    saver_type.save, saver_type.wait = clock.counting(real_save), clock.counting(real_wait)
    try:
        app(["train", "--config", str(place / "config.yaml"), "--recipe",
             str(place / "recipe.yaml"), "--run-name", name.replace(" ", "-")],
            standalone_mode=False)  # fmt: skip
    finally:
        step.update, train.take_snapshot = real_update, real_snapshot
        saver_type.save, saver_type.wait = real_save, real_wait
    newest = list_checkpoints(place / name.replace(" ", "-") / "checkpoints")[-1]
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    saves = options.steps // options.interval
    wall, processor = clock.whole_run(options.steps)
    saving_cpu = saves * save_once(newest, place / "again")
    return (
        f"| {name} | {size / 1e6:.0f} MB | {wall / options.steps:.2f} s "
        f"| {clock.stood_still / saves:.2f} s | {clock.stood_still / wall:.2%} "
        f"| {saving_cpu / processor:.2%} |"
    )


def start_of_a_resumed_run(place: Path) -> str:
    """From settings to the first step, without imports, beside bare reading of the checkpoint."""
    from wmtp.checkpoints.checkpoint import newest_good
    from wmtp.config_check import load_settings
    from wmtp.job import assembled
    from wmtp.state import load_checkpoint
    from wmtp.step import set_in_motion

    settings = load_settings(str(place / "config.yaml"), str(place / "recipe.yaml"))
    taken: dict[str, float] = {}
    for what in ("resumed", "fresh"):  # the first one finds its data tokenized as well
        started, checkpoint = time.perf_counter(), None
        if what == "resumed":
            checkpoint, _ = newest_good(place / "behind-the-loop" / "checkpoints")
            read = [file for file in checkpoint.rglob("*") if file.is_file()]
        with assembled(settings, lambda _: None, checkpoint) as job:
            moving = set_in_motion(job)
            if checkpoint is not None:
                load_checkpoint(checkpoint, moving, job.device)
            taken[what] = time.perf_counter() - started
    started = time.perf_counter()
    size = sum(len(file.read_bytes()) for file in read)
    taken["read"] = time.perf_counter() - started
    return (
        f"start of a run of {size / 1e6:.0f} MB of checkpoint, without imports: resumed "
        f"{taken['resumed']:.2f} s (verifying and loading), fresh {taken['fresh']:.2f} s; reading "
        f"the files alone {taken['read']:.2f} s"
    )


def save_once(checkpoint: Path, target: Path) -> float:
    """Processor seconds of one copy of the tensors and one complete save of such a checkpoint."""
    from safetensors.torch import load_file

    from wmtp.checkpoints.checkpoint import write_folder
    from wmtp.checkpoints.training_state import save_state

    tensors = {
        f"{file.parent.name}.{name}": tensor
        for file in checkpoint.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    started = process_seconds()
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    write_folder(target, 1, lambda folder: save_state(folder / "state", copied, {}))
    taken = process_seconds() - started
    shutil.rmtree(target)
    return taken


class Clock:
    """Wall and processor time of the loop, and how long it stood still for saves."""

    def __init__(self) -> None:
        self.stood_still = 0.0
        self._inside = False
        self._marks: list[tuple[float, float]] = []

    def marking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are noted as the end of a step."""

        def call(*arguments: Any, **named: Any) -> Any:
            self._marks.append((time.perf_counter(), process_seconds()))
            return function(*arguments, **named)

        return call

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is time that the loop stands still."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:  # save() waits first: counted once
                return function(*arguments, **named)
            self._inside = True
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.stood_still += time.perf_counter() - started
                self._inside = False

        return call

    def whole_run(self, steps: int) -> tuple[float, float]:
        """Wall and processor seconds of all steps, from the updates' distances."""
        (wall_0, cpu_0), (wall_1, cpu_1) = self._marks[0], self._marks[-1]
        scale = steps / (len(self._marks) - 1)
        return (wall_1 - wall_0) * scale, (cpu_1 - cpu_0) * scale


def process_seconds() -> float:
    """User and system time of this process, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tokenizer(place: Path) -> str:
    """A small one, trained once."""
    from wmtp.cli import app

    folder = place / "tokenizer"
    if not folder.exists():
        text = "\n".join(Path(path).read_text() for path in (argparse.__file__, shutil.__file__))
        (place / "text.txt").write_text(text)
        with contextlib.redirect_stdout(sys.stderr):
            app(["tokenizer", "train", "--source", str(place / "text.txt"), "--vocab-size", "4000",
                 "--out", str(folder)], standalone_mode=False)  # fmt: skip
    return str(folder)


if __name__ == "__main__":
    main()
