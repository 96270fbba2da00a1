"""Stage 1 of ``critic-wmtp``: the value head learns on the frozen trunk what documents are worth.

A small run inside the run, in ``stage1/`` of its folder: steps, held-out figures, checkpoints,
early stopping; its result is ``stage1/final``, which other runs may name as
``weighting.value_head``. The trunk is only read.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wmtp.data.batches import gather_rows
from wmtp.data.order import rows_at
from wmtp.data.pairs import CORRECT_ABOVE, group_auc
from wmtp.data.reference import fingerprint_model
from wmtp.data.rows import Rows
from wmtp.errors import CheckpointError, DivergedError
from wmtp.frozen_states import FrozenStates
from wmtp.job import Job
from wmtp.model.value_head import (
    ValueHead,
    load_value_head,
    read_value_head_facts,
    save_value_head,
)
from wmtp.opening.model_names import model_directory
from wmtp.opening.rewards import ValueData
from wmtp.optim import (
    build_optimizers,
    clip_gradients,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    step_optimizers,
)
from wmtp.runtime.checkpoint import (
    list_checkpoints,
    newest_good,
    remove_leftovers,
    write_checkpoint,
    write_folder,
)
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import BEFORE_ALL, MetricsLog, cut_back
from wmtp.runtime.run_folder import RunFolder
from wmtp.runtime.stopping import StopRequest
from wmtp.runtime.training_state import load_state, save_state
from wmtp.weighting import Critic, Signals, find_critic
from wmtp.weighting.value_loss import pairwise_loss

VALUE_LR = 1e-3
"""For two small matrices on a frozen trunk; ``optim.value_lr`` replaces it."""

HELD_OUT_DOCUMENTS = 512
"""No more are measured at a time, evenly spread."""


@dataclass
class ValueProgress:
    """Where stage 1 stands between two steps.

    Attributes:
        step: steps done; the data's position follows from it.
        best: best held-out figure so far, higher is better.
        stale: looks since it rose.
        stopped_early: no more steps are wanted.
    """

    step: int = 0
    best: float | None = None
    stale: int = 0
    stopped_early: bool = False

    def judge(self, figure: float, *, patience: int, min_delta: float) -> bool:
        """Note a held-out figure; True if it is the best so far."""
        if self.best is None or figure > self.best + min_delta:
            self.best, self.stale = figure, 0
            return True
        self.stale += 1
        self.stopped_early = self.stale >= patience
        return False


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
    optim = job.settings.recipe.optim
    checkpoints = job.settings.config.paths.checkpoints
    optimizers = build_optimizers(
        head.named_parameters(prefix="value_head"),
        name="adamw",
        lr=optim.value_lr or VALUE_LR,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=device.fused_adamw,
    )
    set_learning_rate(optimizers, optim.value_lr or VALUE_LR)
    parameters = list(head.parameters())
    progress, best = ValueProgress(), _copied(head)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.checkpoints)
    if list_checkpoints(folder.checkpoints):
        checkpoint, _ = newest_good(folder.checkpoints)
        load_stage(checkpoint, head, optimizers, progress, best)
        cut_back(folder.metrics_file, progress.step)
    else:  # killed before its first checkpoint, a run begins anew
        cut_back(folder.metrics_file, BEFORE_ALL)
    first_bad = torch.full((), torch.inf, device=device.torch_device)
    job.model.eval()
    of_learned, of_held_out = (FrozenStates(job, rows) for rows in (data.learned, data.held_out))

    def save() -> None:
        write_checkpoint(
            folder.checkpoints,
            progress.step,
            lambda path: save_stage(path, head, optimizers, progress, best),
            checkpoints.keep_last,
        )

    with (
        StopRequest() as stop,
        MetricsLog(folder.metrics_file) as metrics,
        console.progress(progress.step, stage.max_steps, "value step") as bar,
    ):

        def look() -> None:
            figures = measure_value_head(critic, head, data, of_held_out)
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
            loss = total / count.clamp(min=1)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = clip_gradients(parameters, optim.grad_clip)
            now = torch.where(norm.isfinite(), torch.inf, progress.step + 1.0)
            torch.minimum(first_bad, now, out=first_bad)
            step_optimizers(optimizers, first_bad.isfinite())
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            bar.advance(progress.step)
            last = progress.step == stage.max_steps
            logs = last or progress.step % job.settings.config.log_interval == 0
            looks = last or progress.step % stage.eval_interval == 0
            saves = stop.requested or progress.step % checkpoints.save_interval == 0
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
                save()
            if stop.requested:
                break
    done = progress.step >= stage.max_steps or progress.stopped_early
    if stop.requested and not done:
        console.line(f"stopped in stage 1 after step {progress.step}; go on with --resume")
        return stop.exit_code
    head.load_state_dict(best)
    figures = measure_value_head(critic, head, data, of_held_out)
    facts = facts_of(job, critic, progress, figures)
    write_folder(folder.final, progress.step, lambda path: save_value_head(head, path, facts))
    if stop.requested:
        console.line("stopped after stage 1, which is done; go on with --resume")
        return stop.exit_code
    return None


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


def batch_loss(
    job: Job, critic: Critic, head: ValueHead, data: ValueData, states: FrozenStates, step: int
) -> tuple[Tensor, Tensor]:
    """Sum and count of the value loss of one step; a pure function of step and seed."""
    seed, size = job.settings.config.devices.seed, critic.stage1.batch_size
    if data.pairs is None:
        chosen = rows_at(len(data.learned), seed, step * size, size)
        return critic.value_head_loss(*read(head, data.learned, states, chosen))
    good_P, bad_P = data.pairs.pair_at(seed, step * size, size)
    ends_B, whole_B = last_scores(head, states, np.concatenate((good_P, bad_P)))
    return pairwise_loss(ends_B[:size], ends_B[size:], whole_B[:size] & whole_B[size:])


def read(
    head: ValueHead, rows: Rows, states: FrozenStates, rows_B: NDArray[np.int64]
) -> tuple[Tensor, Signals]:
    """Scores of every position of some documents, with their gradient in the head alone."""
    batch = gather_rows(rows, rows_B, horizon=1)
    assert batch.rewards_BSH is not None
    assert batch.last_BSH is not None
    hidden_BSD = pad_sequence([states.all(int(row)) for row in rows_B], batch_first=True)
    longest, device = hidden_BSD.shape[1], hidden_BSD.device
    scores_BS = head.scores(hidden_BSD)
    signals = Signals(
        batch.valid_BSH[:, :longest].to(device),
        values=head.values(scores_BS.detach()),
        rewards=batch.rewards_BSH[:, :longest].to(device),
        last=batch.last_BSH[:, :longest].to(device),
    )
    return scores_BS, signals


def last_scores(
    head: ValueHead, states: FrozenStates, rows_B: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """The score before each document's last wanted token, and whether the row reaches it."""
    ends = [states.end(int(row)) for row in rows_B]
    whole = [end is not None for end in ends]
    nothing_D = states.nothing_D
    hidden_BD = torch.stack([nothing_D if end is None else end for end in ends])
    return head.scores(hidden_BD[:, None])[:, 0], torch.tensor(whole, device=hidden_BD.device)


@torch.no_grad()
def measure_value_head(
    critic: Critic, head: ValueHead, data: ValueData, states: FrozenStates
) -> dict[str, float]:
    """Held-out loss, and how often a right document ends higher than a wrong one.

    Returns:
        ``value/held_out_loss``, ``value/auc`` over pairs within a problem (or over all documents
        where there are no problems) if there are both kinds, and ``value/documents``.

    Raises:
        DivergedError: an estimate is not finite.
    """
    rows, size = data.held_out, critic.stage1.batch_size
    assert rows.rewards is not None
    count = min(len(rows), HELD_OUT_DOCUMENTS)
    chosen = np.arange(count) * len(rows) // count
    rewards_N = np.asarray(rows.rewards.values)[chosen]
    end_N, whole_N = last_scores(head, states, chosen)
    if not end_N.isfinite().all():
        raise DivergedError(
            "the value head's estimates of held-out documents are not finite, as the hidden states "
            "of the trunk are not. Check paths.models.base, or set devices.mixed_precision: fp32."
        )
    usable = whole_N.cpu().numpy() & np.isfinite(rewards_N)
    groups = rows.shards.groups
    groups_N = np.zeros(count, dtype=np.int32) if groups is None else np.asarray(groups)[chosen]
    competes = usable & (groups_N >= 0)  # below 0 a document belongs to no group
    if data.pairs is None:
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, count, size):
            scores_BS, signals = read(head, rows, states, chosen[start : start + size])
            sums += torch.stack(critic.value_head_loss(scores_BS, signals)).double().cpu()
    else:
        sums = torch.stack(all_pairs_loss(end_N, rewards_N, groups_N, competes)).double().cpu()
    figures = {
        "value/held_out_loss": float(sums[0] / sums[1].clamp(min=1)),
        "value/documents": float(usable.sum()),
    }
    ends = end_N.cpu().numpy()
    if has_both_sides(rewards_N[competes], groups_N[competes]):
        figures["value/auc"] = group_auc(ends[competes], rewards_N[competes], groups_N[competes])
    return figures


def all_pairs_loss(
    end_N: Tensor,
    rewards_N: NDArray[np.float32],
    groups_N: NDArray[np.int32],
    usable_N: NDArray[np.bool_],
) -> tuple[Tensor, Tensor]:
    """Sum and count of the pairwise loss over every right and wrong document of one problem.

    Example:
        >>> ends = torch.tensor([0.5, 0.5, 9.0])
        >>> rewards, groups = np.float32([1, 0, 0]), np.int32([4, 4, 5])
        >>> all_pairs_loss(ends, rewards, groups, np.array([True, True, True]))
        (tensor(0.6931), tensor(1.))
    """
    right_N, wrong_N = (
        (rewards_N > CORRECT_ABOVE) & usable_N,
        (rewards_N <= CORRECT_ABOVE) & usable_N,
    )
    pairs = (groups_N[:, None] == groups_N) & right_N[:, None] & wrong_N
    good, bad = (torch.from_numpy(index).to(end_N.device) for index in pairs.nonzero())
    return pairwise_loss(end_N[good], end_N[bad], torch.ones_like(good, dtype=torch.bool))


def has_both_sides(rewards_N: NDArray[np.float32], groups_N: NDArray[np.int32]) -> bool:
    """Whether some group has a document above 0.5 and one that is not."""
    right = rewards_N > CORRECT_ABOVE
    return bool(np.intersect1d(groups_N[right], groups_N[~right]).size)


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


def save_stage(
    folder: Path,
    head: ValueHead,
    optimizers: tuple[torch.optim.Optimizer, ...],
    progress: ValueProgress,
    best: dict[str, Tensor],
) -> None:
    """Fill a checkpoint of stage 1."""
    named = list(head.named_parameters(prefix="value_head"))
    tensors = {
        **{f"head.{name}": value for name, value in head.state_dict().items()},
        **{f"best.{name}": value for name, value in best.items()},
        **{f"optimizer.{k}": v for k, v in optimizer_tensors(optimizers, named).items()},
    }
    save_state(folder, tensors, asdict(progress))


def load_stage(
    folder: Path,
    head: ValueHead,
    optimizers: tuple[torch.optim.Optimizer, ...],
    progress: ValueProgress,
    best: dict[str, Tensor],
) -> None:
    """Put back what ``save_stage`` wrote.

    Raises:
        CheckpointError: the state does not belong to this value head.
    """
    tensors, values = load_state(folder)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        head.load_state_dict(part("head."))
        for name, kept in best.items():
            kept.copy_(tensors[f"best.{name}"])
        named = list(head.named_parameters(prefix="value_head"))
        load_optimizer_tensors(optimizers, named, part("optimizer."))
        for name, value in asdict(ValueProgress(**values)).items():
            setattr(progress, name, value)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds stage 1 of another recipe ({error}). Resume with the recipe that "
            "wrote it, or start anew with another --run-name."
        ) from error
    if progress.best is not None and not math.isfinite(progress.best):
        raise CheckpointError(f"{folder} holds a best figure that is not finite.")


def _copied(head: ValueHead) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}
