"""Stage 1 of ``critic-wmtp``: the value head learns on the frozen trunk what documents are worth.

A small run inside the run, in ``stage1/`` of its folder: steps, held-out figures, checkpoints,
early stopping; its result is ``stage1/final``, which other runs may name as
``weighting.value_head``. The trunk is only read. Of several ranks each learns the same from the
same documents: it is little work, and a trunk in slices needs all of them to run it.
"""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmtp.checkpoints.checkpoint import (
    list_checkpoints,
    newest_good,
    remove_leftovers,
    step_of,
    write_folder,
)
from wmtp.checkpoints.saving import Saver, naming_last_good
from wmtp.data.reference import fingerprint_model
from wmtp.data.shards import gather_bad_lines
from wmtp.errors import DivergedError
from wmtp.job import Job
from wmtp.loss.pieces import MEBIBYTE
from wmtp.model.value_head import (
    ValueHead,
    load_value_head,
    read_value_head_facts,
    save_value_head,
)
from wmtp.opening.model_names import model_directory
from wmtp.optim import (
    Optimizers,
    build_optimizers,
    clip_gradients,
    note_first_bad,
    set_learning_rate,
    step_optimizers,
)
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import BEFORE_ALL, MetricsLog, cut_back
from wmtp.runtime.run_folder import RunFolder
from wmtp.runtime.stopping import StopRequest
from wmtp.stage1.frozen_states import FrozenStates
from wmtp.stage1.measure import batch_loss, measure_value_head
from wmtp.stage1.progress import Learning, ValueProgress, load_stage, save_stage
from wmtp.weighting import Critic, find_critic

VALUE_LR = 1e-3
"""For two small matrices on a frozen trunk; ``optim.value_lr`` replaces it."""


WHOLE_DOCUMENTS_BYTES = 512 * MEBIBYTE
"""Most memory for the hidden states of whole documents, learned or held out."""


def prepare_value_head(
    job: Job, head: ValueHead, folder: RunFolder, console: Console
) -> int | None:
    """Fill the value head: from the folder that the recipe names, or by training it now.

    Returns:
        None when it is ready, or the exit code after a signal, once a checkpoint is safe.

    Raises:
        CheckpointError: a value head that is named cannot be used.
    """
    critic = find_critic(job.settings.recipe.weighting)
    assert critic is not None
    place = folder.stage1.final if critic.value_head is None else Path(critic.value_head)
    if critic.value_head is None and not place.is_dir():
        code = train_value_head(job, critic, head, folder.stage1, console)
        if code is not None:
            return code
    head.load_state_dict(load_value_head(place, head.hidden_size, head.output).state_dict())
    facts = read_value_head_facts(place)
    if facts.get("trunk") != trunk_name(job):
        console.warning(
            f"the value head in {place} was trained on another trunk ({facts.get('trunk')}); "
            "its estimates may mean nothing here"
        )
    console.line(f"value head {place}: {describe(facts)}")
    auc = facts.get("held_out_auc")
    if auc is None:
        console.warning(
            "whether the value head tells right from wrong is not known: the held-out documents "
            "that were read to their end are all right, or all wrong, or each alone in its group"
        )
    elif auc <= 0.5:
        console.warning(
            "the value head tells right from wrong no better than chance on held-out documents: "
            "its weights carry no information. Train it longer, or on more documents"
        )
    return None


def train_value_head(
    job: Job, critic: Critic, head: ValueHead, folder: RunFolder, console: Console
) -> int | None:
    """Train until the recipe's end, an early stop or a signal; goes on from its checkpoints.

    Args:
        job: the trunk, which stays as it is, and the documents.
        critic: how to learn.
        head: as built; holds the best head found when it ends.
        folder: where stage 1 keeps what it makes.
        console: what the user sees.

    Returns:
        None when done, 130 or 143 after a signal.

    Raises:
        DivergedError: a gradient or an estimate was not finite; the head never took it.
    """
    data, stage, device = job.value_data, critic.stage1, job.device
    assert data is not None
    checkpoints = job.settings.config.paths.checkpoints
    optimizers = value_optimizers(job, head)
    learning = Learning(head, optimizers, ValueProgress(), _copied(head))
    progress, best = learning.progress, learning.best
    ranks = job.ranks
    checkpoint = ranks.from_first(lambda: begin_or_go_on(folder))
    if ranks.is_first:
        gather_bad_lines((data.learned.shards, data.held_out.shards), folder.bad_lines_file)
    if checkpoint is not None:
        load_stage(Path(checkpoint), learning)
    first_bad = torch.full((), torch.inf, device=device.torch_device)
    job.model.eval()
    room = WHOLE_DOCUMENTS_BYTES if data.pairs is None else 0  # of pairs only the ends are read
    of_learned, of_held_out = (
        FrozenStates(job, rows, room) for rows in (data.learned, data.held_out)
    )

    with (
        StopRequest() as stop,
        MetricsLog(
            folder.metrics_file if ranks.is_first else Path(os.devnull), console.warning
        ) as metrics,
        Saver(folder.checkpoints, checkpoints.keep_last, console.warning) as saver,
        console.progress(progress.step, stage.max_steps, "value step") as bar,
    ):

        def look() -> None:
            measured = measure_value_head(critic, head, data, of_held_out)
            # ranks that round differently must not stop at different steps
            figures = ranks.from_first(lambda: measured)
            metrics.write({"step": progress.step, **figures})
            bar.report(progress.step, figures)
            figure = figures.get("value/auc", -figures["value/held_out_loss"])
            if progress.judge(figure, patience=stage.patience, min_delta=stage.min_delta):
                for name, kept in best.items():
                    kept.copy_(head.state_dict()[name])

        if progress.step == 0:
            look()
        while progress.step < stage.max_steps and not progress.stopped_early:
            total, count = batch_loss(job, critic, head, data, of_learned, progress.step)
            loss, norm = learn_values(job, learning, first_bad, total, count)
            progress.step += 1
            bar.advance(progress.step)
            last = progress.step == stage.max_steps
            logs = last or progress.step % job.settings.config.log_interval == 0
            looks = last or progress.step % stage.eval_interval == 0
            stopping = ranks.any(stop.requested)
            saves = stopping or progress.step % checkpoints.save_interval == 0
            if logs or looks or saves:
                raise_if_diverged(first_bad, folder)
            if logs:
                row = {"value/loss": loss.item(), "gradient_norm": norm.item()}
                metrics.write({"step": progress.step, **row})
                bar.update(progress.step, {"loss": loss.item()})
            if looks:
                look()
            if saves:
                metrics.sync()
                if ranks.is_first:
                    saver.save(
                        progress.step,
                        lambda path: save_stage(path, learning),
                        last=stopping,
                    )
            if stopping:
                break
        stopped = ranks.any(stop.requested)
    done = progress.step >= stage.max_steps or progress.stopped_early
    if stopped and not done:
        console.line(f"stopped in stage 1 after step {progress.step}; go on with --resume")
        return stop.exit_code or 143
    head.load_state_dict(best)
    figures = measure_value_head(critic, head, data, of_held_out)
    facts = facts_of(job, critic, progress, figures)
    if ranks.is_first:
        with naming_last_good(folder.checkpoints):
            write_folder(
                folder.final, progress.step, lambda path: save_value_head(head, path, facts)
            )
    ranks.wait()
    if stopped:
        console.line("stopped after stage 1, which is done; go on with --resume")
        return stop.exit_code or 143
    return None


def value_optimizers(job: Job, head: ValueHead) -> Optimizers:
    """What moves the value head in stage 1; its rate does not change."""
    optim = job.settings.recipe.optim
    optimizers = build_optimizers(
        head.named_parameters(prefix="value_head"),
        name="adamw",
        lr=optim.value_lr or VALUE_LR,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=job.device.fused_adamw,
    )
    set_learning_rate(optimizers, optim.value_lr or VALUE_LR)
    return optimizers


def learn_values(
    job: Job, learning: Learning, first_bad: Tensor, total: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the value head by the loss of one step.

    Args:
        job: whose settings say how.
        learning: the head and what moves it.
        first_bad: as in ``note_first_bad``.
        total: sum of the loss, with its gradient.
        count: what it is divided by.

    Returns:
        The loss and the norm of its gradient, scalars on the device.
    """
    loss = total / count.clamp(min=1)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = clip_gradients(list(learning.head.parameters()), job.settings.recipe.optim.grad_clip)
    held_back = note_first_bad(first_bad, norm.isfinite(), learning.progress.step + 1)
    step_optimizers(learning.optimizers, held_back)
    for optimizer in learning.optimizers:
        optimizer.zero_grad(set_to_none=True)
    return loss, norm


def begin_or_go_on(folder: RunFolder) -> str | None:
    """Make the folder ready, and find the checkpoint to go on from; None to begin anew."""
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.checkpoints)
    if not list_checkpoints(folder.checkpoints):  # killed before its first one, a run begins anew
        cut_back(folder.metrics_file, BEFORE_ALL)
        return None
    checkpoint, _ = newest_good(folder.checkpoints)
    cut_back(folder.metrics_file, step_of(checkpoint) or 0)
    return str(checkpoint)


def raise_if_diverged(first_bad: Tensor, folder: RunFolder) -> None:
    """Read the flag that holds updates back.

    Raises:
        DivergedError: names the first bad step.
    """
    step = first_bad.item()
    if math.isfinite(step):
        raise DivergedError(
            f"the gradient of step {step:.0f} of stage 1 was not finite; the value head in "
            f"{folder.root} never took it. Lower optim.value_lr, or look at the rewards."
        )


def facts_of(
    job: Job, critic: Critic, progress: ValueProgress, figures: dict[str, float]
) -> dict[str, Any]:
    """What goes beside the finished head."""
    return {
        "value_loss": critic.value_loss,
        "reward": critic.reward,
        "spread": critic.spread,
        "gamma": critic.gamma,
        "gae_lambda": critic.gae_lambda,
        "trunk": trunk_name(job),
        "steps": progress.step,
        "held_out_auc": figures.get("value/auc"),
        "held_out_loss": figures["value/held_out_loss"],
        "held_out_documents": int(figures["value/documents"]),
    }


def trunk_name(job: Job) -> str:
    """What tells one trunk from another: a hash of its files, or how it was made."""
    base = job.settings.config.paths.models.base
    if base is None:
        size = sum(parameter.numel() for parameter in job.model.trunk.parameters())
        return f"from scratch with seed {job.settings.config.devices.seed}, {size} parameters"
    return fingerprint_model(model_directory(base))[:16]


def describe(facts: dict[str, Any]) -> str:
    """One line on a finished head."""
    auc = facts.get("held_out_auc")
    told = "not known" if auc is None else f"{auc:.3f}"
    return (
        f"held-out AUC {told} over {facts.get('held_out_documents')} documents, "
        f"{facts.get('steps')} steps of {facts.get('value_loss')}"
    )


def _copied(head: ValueHead) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}
