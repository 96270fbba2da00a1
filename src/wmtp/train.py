"""Training, in order: one function that reads from top to bottom.

``assembled`` (in ``job.py``) builds what the settings ask for and checks it. ``train`` puts a
checkpoint's state into it if there is one, has the value head trained first if the weighting needs
one, and then steps: draw micro-batches, run the heads, weigh and learn their targets, move the
parameters, and now and then log, evaluate and save.
"""

import json
import math
import os
from functools import partial
from pathlib import Path

import torch

from wmtp.average import AVERAGE_NAME, average_checkpoints, newest_good_checkpoints
from wmtp.checkpoints.checkpoint import require_space, set_aside_after, write_folder
from wmtp.checkpoints.saving import Saver, naming_last_good
from wmtp.checkpoints.uploads import Uploads
from wmtp.data.frequency import frequent_tokens
from wmtp.data.order import rows_at
from wmtp.data.shards import gather_bad_lines
from wmtp.distributed.ranks import Ranks
from wmtp.distributed.sharding import has_slices
from wmtp.errors import CheckpointError, DivergedError
from wmtp.evaluation.held_out import measure_heads
from wmtp.job import Job
from wmtp.model.decoding.draft_vocabulary import SHARE_DRAFTED, pays_to_trim, write_draft_vocabulary
from wmtp.model.hf_layout import StoredForm
from wmtp.optim import learning_rate, set_learning_rate
from wmtp.runtime.console import Console
from wmtp.runtime.durable import replace_file, storage_errors
from wmtp.runtime.metrics import BEFORE_ALL, MetricsLog, cut_back
from wmtp.runtime.run_folder import RunFolder
from wmtp.runtime.stopping import StopRequest
from wmtp.samples import write_samples
from wmtp.stage1.loop import prepare_value_head
from wmtp.state import (
    Moving,
    Progress,
    checkpoint_bytes,
    load_checkpoint,
    model_bytes,
    stored_model,
    take_snapshot,
)
from wmtp.step import (
    SMALLEST_LOSS_SCALE,
    STEPS_BETWEEN_WAITS,
    Feed,
    relieve_pressure,
    set_in_motion,
    take_step,
)
from wmtp.sync import Tracked, send_final_model
from wmtp.tracking.trackers import Trackers


def train(
    job: Job,
    folder: RunFolder,
    console: Console,
    checkpoint: Path | None = None,
    uploads: Uploads | None = None,
) -> int:
    """Train until the recipe's end, an early stop or a signal.

    Args:
        job: what to train on what; its model was loaded from ``checkpoint`` if there is one.
        folder: where the run keeps what it makes; its lock is held by the caller.
        console: what the user sees.
        checkpoint: a verified checkpoint to go on from.
        uploads: copies what is saved to a store, if that is asked for.

    Returns:
        Exit code: 0 when done, 130 or 143 after a signal, once the checkpoint is safe.

    Raises:
        DivergedError: a loss or gradient was not finite; the parameters never took it.
        StorageError: the last checkpoint, or any while there was no older one, could not be
            written, or final/ or average/ could not.
    """
    config, recipe, device = job.settings.config, job.settings.recipe, job.device
    checkpoints = config.paths.checkpoints
    ranks = job.ranks
    if ranks.is_first:
        results = checkpoints.save_final + (recipe.train.average_last is not None)
        require_space(
            folder.checkpoints,
            checkpoint_bytes(job.model, job.value_head, recipe.optim.name),
            checkpoints.keep_last,
            results * model_bytes(job.model),
        )
        folder.write_settings(job.describe())
        gather_bad_lines(job.shards, folder.bad_lines_file)
        if checkpoint is None:  # rows of a run that was killed before its first checkpoint
            cut_back(folder.metrics_file, BEFORE_ALL)
            cut_back(folder.samples_file, BEFORE_ALL)
    if job.value_head is not None and checkpoint is None:
        stopped = prepare_value_head(job, job.value_head, folder, console)
        if stopped is not None:
            return stopped
    moving, tracked = set_in_motion(job), what_is_tracked(job)
    model, progress, window = job.model, moving.progress, moving.window
    if checkpoint is not None:
        load_checkpoint(checkpoint, moving, device, ranks)
        ranks.wait()
        if ranks.is_first:  # only now: a resume that is refused leaves the run as it was
            for moved in set_aside_after(folder.checkpoints, progress.step):
                console.warning(
                    f"set aside as {moved.name}: it lies beyond the checkpoint that is resumed"
                )
            cut_back(folder.metrics_file, progress.step)
            cut_back(folder.samples_file, progress.step)
            if uploads is not None:
                uploads.set_aside_after(progress.step)

    saving_ranks = ranks.apart()  # a save behind training must not cut into its talk
    with (
        StopRequest() as stop,
        MetricsLog(
            folder.metrics_file if ranks.is_first else Path(os.devnull), console.warning
        ) as metrics,
        Trackers(
            tracked.destinations(folder) if ranks.is_first else [], folder, console
        ) as trackers,
        Saver(
            folder.checkpoints,
            checkpoints.keep_last,
            console.warning,
            asynchronous=checkpoints.asynchronous,
            ranks=saving_ranks,
            uploads=uploads,
        ) as saver,
        Feed(job, progress) as feed,
        console.progress(progress.step, job.max_steps) as bar,
    ):

        def evaluate_now() -> None:
            with window.clock_stopped():
                figures = evaluate_held_out(job)
            metrics.write({"step": progress.step, **figures})
            trackers.wake()
            bar.report(progress.step, figures)
            judge(progress, figures, job)

        model.train()
        if progress.step == 0 and job.eval_rows and recipe.train.eval_interval:
            evaluate_now()
        window.start_clock()
        ending = progress.step >= job.max_steps or progress.stopped_early
        if ending:
            console.line(f"nothing left to do: the run ended after step {progress.step}")
        # a signal is looked at after a step and its save only: there is always something to resume
        while not ending:
            lr = rate_at(job, progress.step)
            set_learning_rate(moving.optimizers, lr)
            fits = take_step(job, moving, feed)
            if fits is not None:
                tell_what_fits(fits, job.ranks, progress.step, console)
            bar.advance(progress.step)

            last = progress.step >= job.max_steps
            if last or progress.step % config.log_interval == 0:
                look_for_bad_steps(job, moving, folder, console)
                window.gather_on_first(ranks)
                row = {
                    "learning_rate": lr,
                    "tokens_seen": progress.tokens_seen,
                    **window.close(),
                }
                row |= utilization(job, row["tokens_per_second"])
                metrics.write({"step": progress.step, **row})
                trackers.wake()
                bar.update(progress.step, row)
                relief = relieve_pressure(device, feed)
                if relief is not None:
                    console.line(f"step {progress.step}: {relief}")
            elif is_due(progress.step, STEPS_BETWEEN_WAITS):
                device.free_scratch()

            if job.eval_rows and (last or is_due(progress.step, recipe.train.eval_interval)):
                evaluate_now()
            samples = recipe.train.samples
            if (
                samples.prompts
                and (ranks.is_first or has_slices(model))
                and (last or is_due(progress.step, samples.interval))
            ):
                with window.clock_stopped():
                    write_samples(job, folder.samples_file, progress.step, console)

            ending = ranks.any(last or progress.stopped_early or stop.requested)
            if ending or is_due(progress.step, checkpoints.save_interval):
                look_for_bad_steps(job, moving, folder, console)
                metrics.sync()
                with window.clock_stopped():
                    saver.wait()  # before the copy is taken: two would be in memory
                    snapshot = take_snapshot(
                        moving, job.tokenizer, device, copied=checkpoints.asynchronous, ranks=ranks
                    )
                    saver.save(
                        progress.step, partial(snapshot.write, ranks=saving_ranks), last=ending
                    )
            saver.look()

        stopped = ranks.any(stop.requested)
        if stopped:
            trackers.status = "KILLED"

    if stopped and progress.step < job.max_steps:
        console.line(
            f"stopped by {stop.signal_name or 'a signal to another rank'} after step "
            f"{progress.step}; go on with --resume"
        )
        return stop.exit_code or 143
    if progress.stopped_early:
        console.line(f"stopped early after step {progress.step}: no gain for a while")
    if checkpoints.save_final:
        save_final(job, folder, progress.step)
        console.line(f"the model is in {folder.final}")
        if ranks.is_first:
            send_final_model(tracked, folder, console)
    if recipe.train.average_last is not None and ranks.is_first:
        write_average(folder, recipe.train.average_last, console)
    ranks.wait()
    return 0


def save_final(job: Job, folder: RunFolder, step: int) -> None:
    """Write the model that users take away."""
    stored = stored_model(job.model, job.tokenizer, job.ranks)
    if stored is not None:
        with naming_last_good(folder.checkpoints):
            write_folder(folder.final, step, partial(fill_final, stored, job))


def fill_final(stored: StoredForm, job: Job, folder: Path) -> None:
    """Write a Hugging Face directory: config, weights, tokenizer, tokens worth drafting."""
    stored.write(folder)
    job.tokenizer.save(folder)
    if job.model.horizon > 1:
        vocab_size = job.model.trunk_shape.vocab_size
        tokens = frequent_tokens(job.train_rows.shards, vocab_size, SHARE_DRAFTED)
        if pays_to_trim(len(tokens), vocab_size):
            write_draft_vocabulary(folder, tokens)


def write_average(folder: RunFolder, count: int, console: Console) -> None:
    """Write the mean of the last checkpoints; a run that made too few keeps all else it made."""
    try:
        last_ones, _ = newest_good_checkpoints(folder.checkpoints, count)
    except CheckpointError as error:
        console.warning(f"{AVERAGE_NAME}/ was not written: {error}")
        return
    with naming_last_good(folder.checkpoints):
        average_checkpoints(last_ones, folder.root / AVERAGE_NAME)
    console.line(f"the mean of the last {count} checkpoints is in {folder.root / AVERAGE_NAME}")


def what_is_tracked(job: Job) -> Tracked:
    """What trackers are told of the run."""
    settings = job.settings
    return Tracked(settings.config, settings.recipe.run, settings.algorithm, job.describe())


def utilization(job: Job, tokens_per_second: float) -> dict[str, float]:
    """``mfu``, the share of the chip's peak that training uses; nothing where none is known."""
    peak = job.device.peak_flops()
    if peak is None:
        return {}
    length = job.settings.recipe.data.train.max_length
    return {"mfu": tokens_per_second * job.model.training_flops_per_token(length) / peak}


def rate_at(job: Job, step: int) -> float:
    """The recipe's learning rate of a step."""
    optim = job.settings.recipe.optim
    return learning_rate(
        step,
        peak=optim.lr,
        scheduler=optim.scheduler,
        warmup_steps=optim.warmup_steps,
        max_steps=job.max_steps,
        decay_fraction=optim.decay_fraction,
        minimum=optim.min_lr,
    )


def tell_what_fits(rows: int, ranks: Ranks, step: int, console: Console) -> None:
    """Say, on the rank whose memory ran out, what its micro-batches are from now on."""
    line = (
        f"memory ran out: from step {step} on a micro-batch has {rows} rows; steps learn from "
        "the same rows as before"
    )
    if ranks.is_first:
        console.warning(line)
    else:  # which has a console that nobody sees
        Console().warning(f"rank {ranks.index}: {line}")


def look_for_bad_steps(job: Job, moving: Moving, folder: RunFolder, console: Console) -> None:
    """Read the flags of ``held_back``, or the scale that fp16 has come down to.

    Raises:
        DivergedError: names the first bad step, what it read and where to go on from.
    """
    progress, train = moving.progress, job.settings.recipe.train
    if moving.scaler.is_enabled() and moving.scaler.get_scale() < SMALLEST_LOSS_SCALE:
        raise DivergedError(
            f"no gradient was finite for many steps up to step {progress.step}, whatever the fp16 "
            f"loss scale; no parameter took them. The last good checkpoint is in "
            f"{folder.checkpoints}. Lower optim.lr, or set devices.mixed_precision: bf16."
        )
    first_bad = moving.first_bad_step.item()
    if not math.isfinite(first_bad):
        return
    if train.on_nonfinite == "skip":
        skipped = int(moving.skipped.item())
        if skipped > progress.skipped:
            console.warning(
                f"{skipped - progress.skipped} steps up to step {progress.step} were skipped: "
                f"their gradients were not finite; {skipped} of at most {train.skip_limit} so far"
            )
        progress.skipped = skipped
        if skipped <= train.skip_limit:
            return
    places = places_of_step(job, int(first_bad))
    if job.ranks.is_first:
        with storage_errors(f"{folder.bad_step_file} could not be written"):
            content = json.dumps({"step": int(first_bad), "rows": places}, indent=1)
            replace_file(folder.bad_step_file, content.encode() + b"\n")
    shown = "; ".join(places[:3]) + (f"; and {len(places) - 3} more rows" if places[3:] else "")
    raise DivergedError(
        f"the loss or gradient of step {first_bad:.0f} was not finite; no parameter took it. It "
        f"read {shown} (all of them: {folder.bad_step_file}). The last good checkpoint is in "
        f"{folder.checkpoints}. Lower optim.lr or optim.grad_clip, look at that data, or set "
        "train.on_nonfinite: skip."
    )


def places_of_step(job: Job, step: int) -> list[str]:
    """Where the rows of an optimizer step (the first is 1) came from, ``FILE:LINE`` each."""
    seed, count = job.settings.config.devices.seed, job.rows_per_step
    rows = rows_at(len(job.train_rows), seed, (step - 1) * count, count)
    return [job.train_rows.describe(int(row)) for row in rows]


def evaluate_held_out(job: Job) -> dict[str, float]:
    """Figures on the recipe's evaluation data, as ``eval/...``."""
    lengths = job.tokenizer.bytes_of_ids
    figures = measure_heads(
        job.model,
        job.evaluation_batches(),
        job.device,
        job.settings.recipe.head_scale,
        job.workspace,
        job.ranks,
        None if lengths is None else torch.from_numpy(lengths),
    )
    return {f"eval/{name}": value for name, value in figures.items()}


def judge(progress: Progress, figures: dict[str, float], job: Job) -> None:
    """Let early stopping look at a held-out figure, if the recipe wants it."""
    stopping = job.settings.recipe.train.early_stopping
    if stopping.enabled and stopping.monitor in figures:
        progress.judge(
            figures[stopping.monitor], patience=stopping.patience, min_delta=stopping.min_delta
        )


def is_due(step: int, interval: int | None) -> bool:
    """True at every multiple of the interval."""
    return interval is not None and step % interval == 0
