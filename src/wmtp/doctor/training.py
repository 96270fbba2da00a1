"""Ten steps of real training: model, loss, gradients, checkpoint, tracking."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wmtp.checkpoints.checkpoint import newest_good
from wmtp.checkpoints.training_state import load_tensors
from wmtp.config import Settings
from wmtp.doctor.finding import Finding, attempt, judged, not_checked, passed
from wmtp.doctor.first_step import (
    FirstStep,
    gradients_are_there,
    heads_are_there,
    loss_is_computed,
    take_first_step,
)
from wmtp.evaluation.held_out import measure_heads
from wmtp.job import Job, assembled
from wmtp.runtime.console import Console
from wmtp.runtime.lock import hold_run_lock
from wmtp.runtime.metrics import read_metrics
from wmtp.runtime.run_folder import RunFolder, create_run_folder
from wmtp.state import TRAINING_STATE, load_checkpoint, take_snapshot
from wmtp.step import set_in_motion
from wmtp.tracking.mlflow_destination import local_tracking_uri
from wmtp.train import train

STEPS = 10


@dataclass(frozen=True)
class Trained:
    """A run that is over.

    Attributes:
        before: digest of every parameter when it began.
        after: the same when it ended.
        trained: names of the parameters that were to move.
        first_loss: mean cross-entropy of the rows of its first step before training, in nats.
        last_loss: of the same rows after it.
    """

    settings: Settings
    folder: RunFolder
    before: dict[str, str]
    after: dict[str, str]
    trained: frozenset[str]
    first_loss: float
    last_loss: float


def training_findings(settings: Settings, base_path: Path) -> Iterator[Finding]:
    """Train and look at what came of it, check by check; ends where nothing can follow.

    Args:
        settings: what to train, ``max_steps`` and all; tokenized data are kept in its base path.
        base_path: gets the run's folder.

    Raises:
        KeyboardInterrupt: a signal ended the training.
    """
    done: list[Trained] = []
    with quiet_console() as console, ExitStack() as opened:
        jobs: list[Job] = []

        def load() -> Finding:
            jobs.append(opened.enter_context(assembled(settings, console.log)))
            return passed("model loaded", describe_model(jobs[0]))

        yield attempt("model loaded", load)
        if not jobs:
            yield not_checked("training", "there is no model to train")
            return
        yield from findings_of_job(jobs.pop(), base_path, console, done)
    if not done:
        yield not_checked("checkpoint, tracking", "there is no run to look at")
        return
    yield attempt("gradients applied", lambda: parameters_moved(done[0]))
    yield attempt("checkpoint", lambda: checkpoint_comes_back(done[0]))
    yield attempt("tracking written", lambda: tracking_is_written(done[0]))


def findings_of_job(
    job: Job, base_path: Path, console: Console, done: list[Trained]
) -> Iterator[Finding]:
    """Its heads, its first micro-batch, and its training, which is left in ``done``."""
    wanted = job.settings.recipe.model.heads.horizon
    yield attempt("heads there", lambda: heads_are_there(job.model, wanted))
    firsts: list[FirstStep] = []

    def take() -> Finding:
        firsts.append(take_first_step(job))
        return loss_is_computed(firsts[0])

    yield attempt("loss computed", take)
    for first in firsts:
        yield attempt("gradients computed", partial(gradients_are_there, first))
    firsts.clear()

    def run() -> Finding:
        done.append(train_whole(job, base_path, console))
        return loss_falls(done[0])

    yield attempt("loss falls", run)


@contextmanager
def quiet_console() -> Iterator[Console]:
    """A console whose user sees the findings instead."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, Console(stream=nowhere) as console:
        yield console


def describe_model(job: Job) -> str:
    """Sizes and place."""
    return f"{job.model.num_parameters:,} parameters on {job.device.name}"


def train_whole(job: Job, base_path: Path, console: Console) -> Trained:
    """Train from the recipe's start to its end, as ``wmtp train`` does.

    Raises:
        KeyboardInterrupt: a signal ended it.
    """
    folder = create_run_folder(base_path, job.settings.recipe.run.name)
    before, first_loss = digests(job.model), loss_of_first_rows(job)
    with hold_run_lock(folder.lock_file, folder.name):
        if train(job, folder, console) != 0:
            raise KeyboardInterrupt
    return Trained(
        settings=job.settings,
        folder=folder,
        before=before,
        after=digests(job.model),
        trained=frozenset(n for n, p in job.model.named_parameters() if p.requires_grad),
        first_loss=first_loss,
        last_loss=loss_of_first_rows(job),
    )


def digests(module: nn.Module) -> dict[str, str]:
    """A hash of every parameter's bytes, which takes no second model in memory."""
    return {name: digest(parameter) for name, parameter in module.named_parameters()}


def digest(tensor: Tensor) -> str:
    """Equal for tensors that are equal to the last bit."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16).hexdigest()


def loss_of_first_rows(job: Job) -> float:
    """Cross-entropy of the first micro-batch, all weights 1; the same rows before and after."""
    with job.training_batches(start_row=0) as batches:
        batch = next(batches)
    scale = job.settings.recipe.head_scale
    return measure_heads(job.model, [batch], job.device, scale, job.workspace)["loss"]


def logged_rows(run: Trained) -> list[dict[str, Any]]:
    """The logged steps."""
    rows = read_metrics(run.folder.metrics_file)
    return [dict(row) for row in rows if "loss" in row]


def loss_falls(run: Trained) -> Finding:
    """All steps were logged, and the rows of the first one are better known than before."""
    rows = logged_rows(run)
    steps = run.settings.recipe.train.max_steps
    speed = max((row["tokens_per_second"] for row in rows), default=0.0)
    found = (
        f"{len(rows)} steps, {run.first_loss:.3f} -> {run.last_loss:.3f} nats on the first one's "
        f"rows, "
        f"{speed:,.0f} tokens/s at best"
    )
    holds = bool(rows) and rows[-1]["step"] == steps and run.last_loss < run.first_loss
    return judged("loss falls", holds, found)


def parameters_moved(run: Trained) -> Finding:
    """Every trained tensor is another than before, every frozen one the same."""
    moved = {name for name, value in run.after.items() if run.before[name] != value}
    still, astray = run.trained - moved, moved - run.trained
    name = "gradients applied"
    if astray:
        return judged(name, False, f"{len(astray)} frozen tensors moved, such as {min(astray)}")
    if still:
        return judged(name, False, f"{len(still)} tensors did not move, such as {min(still)}")
    frozen = len(run.before) - len(run.trained)
    return judged(name, bool(moved), f"{len(moved)} tensors moved, {frozen} frozen did not")


def checkpoint_comes_back(run: Trained) -> Finding:
    """The last checkpoint is whole; loaded, it gives every number back to the last bit."""
    checkpoint, _ = newest_good(run.folder.checkpoints)
    stored = load_tensors(checkpoint / TRAINING_STATE)
    with (
        quiet_console() as console,
        assembled(run.settings, console.log, checkpoint) as job,
    ):
        moving = set_in_motion(job)
        load_checkpoint(checkpoint, moving, job.device)
        other = [name for name, value in digests(job.model).items() if run.after[name] != value]
        state = take_snapshot(moving, job.tokenizer, job.device, copied=False).tensors
        other += [name for name, tensor in stored.items() if digest(state[name]) != digest(tensor)]
        names = len(run.after) + len(stored)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    if other:
        return judged("checkpoint", False, f"{len(other)} tensors came back changed: {other[0]}")
    found = f"{checkpoint.name}: {names} tensors, {size:,} bytes, reloaded bit for bit"
    return passed("checkpoint", found)


def tracking_is_written(run: Trained) -> Finding:
    """What MLflow's store says of the run is what was logged."""
    name = "tracking written"
    if not run.settings.config.mlflow.enabled:
        return not_checked(name, "mlflow.enabled is false for this run")
    from mlflow.tracking import MlflowClient

    saved = json.loads((run.folder.tracking / "mlflow-run.json").read_text())
    client = MlflowClient(local_tracking_uri(run.folder.root.parent))
    history = client.get_metric_history(saved["run_id"], "loss")
    found = {point.step: point.value for point in history}
    wanted = {row["step"]: row["loss"] for row in logged_rows(run)}
    return judged(name, found == wanted, f"{len(found)} of {len(wanted)} steps in MLflow's store")
