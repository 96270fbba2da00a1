"""Training, in order: one function that reads from top to bottom.

``assemble`` (in ``job.py``) builds what the settings ask for and checks it. ``train`` puts a
checkpoint's state into it if there is one, and then steps: draw micro-batches, run the heads,
weigh and learn their targets, move the parameters, and now and then log, evaluate and save.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from wmtp.data.batches import Batch
from wmtp.errors import DivergedError
from wmtp.evaluation.held_out import measure_heads
from wmtp.evaluation.window import Window
from wmtp.job import Job
from wmtp.loss import LossOutput, fused_mtp_loss
from wmtp.optim import build_adamw, clip_gradients, learning_rate, set_learning_rate
from wmtp.runtime.checkpoint import require_space, write_checkpoint, write_folder
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import MetricsLog, cut_back
from wmtp.runtime.mlflow_destination import MlflowDestination
from wmtp.runtime.run_folder import RunFolder
from wmtp.runtime.stopping import StopRequest
from wmtp.runtime.tensorboard_destination import TensorboardDestination
from wmtp.runtime.tracking import Destination, Trackers
from wmtp.state import (
    Moving,
    Progress,
    checkpoint_bytes,
    load_checkpoint,
    save_checkpoint,
    save_model_directory,
)
from wmtp.weighting import Signals, weigh_chunk

SMALLEST_LOSS_SCALE = 2.0**-20
"""fp16's loss scale starts at 2^16 and halves at each bad step; no good one needs it this low."""


def train(job: Job, folder: RunFolder, console: Console, checkpoint: Path | None = None) -> int:
    """Train until the recipe's end, an early stop or a signal.

    Args:
        job: what to train on what; its model was loaded from ``checkpoint`` if there is one.
        folder: where the run keeps what it makes; its lock is held by the caller.
        console: what the user sees.
        checkpoint: a verified checkpoint to go on from.

    Returns:
        Exit code: 0 when done, 130 or 143 after a signal, once the checkpoint is safe.

    Raises:
        DivergedError: a loss or gradient was not finite; the parameters never took it.
        StorageError: a checkpoint could not be written.
    """
    config, recipe, device = job.settings.config, job.settings.recipe, job.device
    checkpoints = config.paths.checkpoints
    moving = set_in_motion(job)
    model, optimizer, scaler = moving.model, moving.optimizer, moving.scaler
    progress, window = moving.progress, moving.window
    if checkpoint is not None:
        load_checkpoint(checkpoint, moving, device)
        cut_back(folder.metrics_file, progress.step)
    require_space(folder.checkpoints, checkpoint_bytes(model), checkpoints.keep_last)
    folder.write_settings(job.describe())

    with (
        StopRequest() as stop,
        MetricsLog(folder.metrics_file) as metrics,
        Trackers(destinations(job, folder), folder, console) as trackers,
        job.training_batches(start_row=progress.rows_read) as batches,
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
            set_learning_rate(optimizer, lr)
            step_batches = [next(batches) for _ in range(recipe.train.gradient_accumulation)]
            valid_count = scaled_count(step_batches, recipe.head_scale)
            loss_scale = scaler.get_scale()

            for batch in step_batches:
                here = batch.to(device.torch_device)
                output = learn(job, here, valid_count, loss_scale)
                window.add(output, here.valid_BSH)

            scaler.unscale_(optimizer)
            norm = clip_gradients(job.trained_parameters, recipe.optim.grad_clip)
            hold_back_if_not_finite(moving, norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            progress.advance(job.rows_per_step, recipe.data.train.max_length)
            window.end_step(norm, job.rows_per_step * recipe.data.train.max_length)
            bar.advance(progress.step)

            last = progress.step >= job.max_steps
            if last or stop.requested or progress.step % config.log_interval == 0:
                raise_if_diverged(moving, folder)
            if last or progress.step % config.log_interval == 0:
                row = {
                    "learning_rate": lr,
                    "tokens_seen": progress.tokens_seen,
                    **window.close(),
                }
                row |= utilization(job, row["tokens_per_second"])
                metrics.write({"step": progress.step, **row})
                trackers.wake()
                bar.update(progress.step, row)

            if job.eval_rows and (last or is_due(progress.step, recipe.train.eval_interval)):
                evaluate_now()

            ending = last or progress.stopped_early or stop.requested
            if ending or is_due(progress.step, checkpoints.save_interval):
                raise_if_diverged(moving, folder)
                metrics.sync()
                with window.clock_stopped():
                    write_checkpoint(
                        folder.checkpoints,
                        progress.step,
                        lambda path: save_checkpoint(path, moving, job.tokenizer, device),
                        checkpoints.keep_last,
                    )

        if stop.requested:
            trackers.status = "KILLED"

    if stop.requested and progress.step < job.max_steps:
        console.line(
            f"stopped by {stop.signal_name} after step {progress.step}; go on with --resume"
        )
        return stop.exit_code
    if progress.stopped_early:
        console.line(f"stopped early after step {progress.step}: no gain for a while")
    if checkpoints.save_final:
        write_folder(
            folder.final,
            progress.step,
            lambda path: save_model_directory(model, job.tokenizer, path),
        )
    return 0


def set_in_motion(job: Job) -> Moving:
    """Build what a step changes, as it is before the first step."""
    optim, device = job.settings.recipe.optim, job.device
    optimizer = build_adamw(
        job.model.named_parameters(),
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=device.fused_adamw,
    )
    scaler = device.grad_scaler()
    scaler.scale(torch.zeros((), device=device.torch_device))  # it builds its state on first use
    never = torch.full((), torch.inf, device=device.torch_device)
    window = Window(job.model.horizon, device)
    return Moving(job.model, optimizer, scaler, window, Progress(), never)


def destinations(job: Job, folder: RunFolder) -> list[Destination]:
    """The trackers that the config asks for."""
    config, run = job.settings.config, job.settings.recipe.run
    chosen: list[Destination] = []
    if config.mlflow.enabled:
        chosen.append(
            MlflowDestination(
                folder,
                tracking_uri=config.mlflow.tracking_uri,
                experiment=config.mlflow.experiment,
                settings=job.describe(),
                tags=dict.fromkeys(run.tags, "true") | {"algorithm": job.settings.algorithm},
            )
        )
    if config.tensorboard.enabled:
        chosen.append(TensorboardDestination(folder))
    return chosen


def learn(job: Job, batch: Batch, valid_count: float, loss_scale: float) -> LossOutput:
    """Forward, weigh and backward for one micro-batch; gradients add up in the parameters.

    Args:
        job: model, weighting and what they need.
        batch: on the device.
        valid_count: valid targets of the whole step, each counted with its head's scale.
        loss_scale: factor on the gradients, for fp16.
    """
    model, weighting = job.model, job.settings.recipe.weighting
    with job.device.autocast():
        hidden = model(batch.tokens_BS, batch.targets_BSH, batch.documents_BS)
    signals = Signals(
        batch.valid_BSH,
        reference_ce=job.reference_ce(batch),
        loss_weights=batch.loss_weights_BSH,
    )
    output = fused_mtp_loss(
        hidden,
        model.unembedding_VD,
        batch.targets_BSH,
        batch.valid_BSH,
        lambda ce, part: weigh_chunk(weighting, signals, ce, part),
        weighting.scope,
        valid_count=valid_count,
        head_scale=job.settings.recipe.head_scale,
        unembedding_gradient_VD=gradient_of(model.unembedding_VD),
        workspace=job.workspace,
        loss_scale=loss_scale,
    )
    output.loss.backward()  # type: ignore[no-untyped-call]
    return output


def utilization(job: Job, tokens_per_second: float) -> dict[str, float]:
    """``mfu``, the share of the chip's peak that training uses; nothing where none is known."""
    peak = job.device.peak_flops()
    if peak is None:
        return {}
    length = job.settings.recipe.data.train.max_length
    return {"mfu": tokens_per_second * job.model.training_flops_per_token(length) / peak}


def gradient_of(parameter: nn.Parameter) -> Tensor | None:
    """The parameter's gradient, made of zeros if there is none yet; None if it is frozen."""
    if not parameter.requires_grad:
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def scaled_count(batches: list[Batch], head_scale: tuple[float, ...]) -> float:
    """``N`` of a step: its valid targets, each counted with its head's scale."""
    return math.fsum(
        scale * count
        for batch in batches
        for scale, count in zip(head_scale, batch.valid_counts_H, strict=True)
    )


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


def hold_back_if_not_finite(moving: Moving, norm: Tensor) -> None:
    """Pass over this update, and all later ones, once a gradient was not finite.

    A flag on the device and not a look at it, so that no step waits: the fused optimizer reads
    it itself. fp16's scaler has its own, which is meant to go off now and then.
    """
    if moving.scaler.is_enabled():
        return
    first_bad = moving.first_bad_step
    this_step = torch.full_like(first_bad, moving.progress.step + 1)
    first_bad.copy_(torch.where(norm.isfinite(), first_bad, torch.minimum(first_bad, this_step)))
    moving.optimizer.found_inf = first_bad.isfinite().float()  # type: ignore[attr-defined]


def raise_if_diverged(moving: Moving, folder: RunFolder) -> None:
    """Read the flag of ``hold_back_if_not_finite``, or the scale that fp16 has come down to.

    Raises:
        DivergedError: names the first bad step and where to go on from.
    """
    if moving.scaler.is_enabled() and moving.scaler.get_scale() < SMALLEST_LOSS_SCALE:
        raise DivergedError(
            f"no gradient was finite for many steps up to step {moving.progress.step}, whatever "
            f"the fp16 loss scale; no parameter took them. The last good checkpoint is in "
            f"{folder.checkpoints}. Lower optim.lr, or set devices.mixed_precision: bf16."
        )
    first_bad = moving.first_bad_step.item()
    if math.isfinite(first_bad):
        raise DivergedError(
            f"the gradient of step {first_bad:.0f} was not finite; no parameter took it. The last "
            f"good checkpoint is in {folder.checkpoints}. Lower optim.lr or optim.grad_clip, or "
            "look at the data of that step."
        )


def evaluate_held_out(job: Job) -> dict[str, float]:
    """Figures on the recipe's evaluation data, as ``eval/...``."""
    figures = measure_heads(
        job.model,
        job.evaluation_batches(),
        job.device,
        job.settings.recipe.head_scale,
        job.workspace,
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
