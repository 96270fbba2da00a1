"""How far a run has come, and everything it needs to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmtp import __version__
from wmtp.checkpoints.training_state import (
    TENSORS_FILE,
    load_tensors,
    load_values,
    part_of,
    save_state,
    save_values,
    tensor_names,
)
from wmtp.data.tokenizer import TextTokenizer
from wmtp.distributed.ranks import ALONE, Ranks, is_lost_rank
from wmtp.distributed.sharding import is_sliced, whole_tensor
from wmtp.distributed.slices import read_slices, write_slices
from wmtp.errors import CheckpointError
from wmtp.evaluation.window import Window
from wmtp.model.hf_layout import StoredForm, stored_form
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import SpecialTokens
from wmtp.model.value_head import ValueHead
from wmtp.optim import (
    hidden_matrices,
    load_optimizer_tensors,
    optimizer_places,
    optimizer_tensors,
)
from wmtp.runtime.device import Device

TRAINING_STATE = "training_state"


@dataclass
class Progress:
    """Where training stands between two steps.

    Attributes:
        step: optimizer steps done.
        rows_read: rows of training data used, which is the whole position in the data.
        tokens_seen: positions trained on.
        best: lowest held-out figure so far, for early stopping.
        stale_evaluations: evaluations since ``best`` fell.
        stopped_early: no more steps are wanted.
        largest_micro_batch: rows that fit into memory at once, where it ran out before; None
            where the recipe's number did so far.
        skipped: updates passed over, as far as the user was told.
    """

    step: int = 0
    rows_read: int = 0
    tokens_seen: int = 0
    best: float | None = None
    stale_evaluations: int = 0
    stopped_early: bool = False
    largest_micro_batch: int | None = None
    skipped: int = 0

    def advance(self, rows: int, row_length: int) -> None:
        """Count a step."""
        self.step += 1
        self.rows_read += rows
        self.tokens_seen += rows * row_length

    def judge(self, figure: float, *, patience: int, min_delta: float) -> None:
        """Note a held-out figure, and whether it is time to stop."""
        if self.best is None or figure < self.best - min_delta:
            self.best, self.stale_evaluations = figure, 0
        else:
            self.stale_evaluations += 1
        self.stopped_early = self.stale_evaluations >= patience


@dataclass(frozen=True)
class Moving:
    """What changes with every step.

    Attributes:
        value_head: the critic's; None where the weighting needs no values.
        memory: what the weighting remembers from step to step, on the device.
        sums: what it counts during a step, on the device; zeros between two.
        first_bad_step: on the device, infinite while every gradient was finite.
        skipped: on the device, how many updates were passed over.
    """

    model: MultiTokenModel
    value_head: ValueHead | None
    optimizers: tuple[torch.optim.Optimizer, ...]
    scaler: torch.amp.GradScaler
    window: Window
    progress: Progress
    memory: dict[str, Tensor]
    sums: dict[str, Tensor]
    first_bad_step: Tensor
    skipped: Tensor


def named_parameters(
    model: MultiTokenModel, value_head: ValueHead | None
) -> list[tuple[str, nn.Parameter]]:
    """Every parameter by its name in a checkpoint's training state."""
    beside = [] if value_head is None else value_head.named_parameters(prefix="value_head")
    return [*model.named_parameters(), *beside]


def stored_model(
    model: MultiTokenModel, tokenizer: TextTokenizer, ranks: Ranks, *, copied: bool = False
) -> StoredForm | None:
    """The model as its Hugging Face directory holds it, on the first rank; None on the others.

    A model in slices is gathered there, one tensor at a time and on the CPU.
    """
    bos = tokenizer.bos_ids[0] if tokenizer.bos_ids else None
    stored = stored_form(model, special_tokens=SpecialTokens(bos, (tokenizer.eos_id,)))
    whole = {}
    for name, tensor in stored.tensors.items():
        gathered = whole_tensor(tensor)
        if ranks.is_first:
            if copied or is_sliced(tensor):
                gathered = gathered.detach().to("cpu", copy=not is_sliced(tensor))
            whole[name] = gathered
    return replace(stored, tensors=whole) if ranks.is_first else None


def model_bytes(model: MultiTokenModel) -> int:
    """How large ``final/`` is, but for its tokenizer."""
    return sum(p.numel() for p in model.parameters()) * torch.float32.itemsize


def checkpoint_bytes(
    model: MultiTokenModel, value_head: ValueHead | None, optimizer: Literal["adamw", "muon"]
) -> int:
    """How large a checkpoint is, but for its tokenizer: the numbers and their optimizer's."""
    named = named_parameters(model, value_head)
    on_muon = hidden_matrices(named) if optimizer == "muon" else frozenset[str]()
    moments = {name: 1 if name in on_muon else 2 for name, _ in named}
    numbers = sum(p.numel() * (1 + p.requires_grad * moments[name]) for name, p in named)
    return numbers * torch.float32.itemsize


@dataclass(frozen=True)
class Snapshot:
    """Everything a checkpoint will hold, between two steps; of several ranks, this one's part.

    Attributes:
        model: what goes into the Hugging Face directory; None where another rank has it.
        tensors: what goes into ``training_state/``.
        values: what goes beside them, as JSON.
    """

    model: StoredForm | None
    tokenizer: TextTokenizer
    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def write(self, folder: Path, ranks: Ranks = ALONE) -> None:
        """Fill a folder: the model as a Hugging Face directory, the rest in ``training_state/``.

        Several ranks write at once, each what it has.

        Raises:
            OSError: the disk refused.
        """
        if ranks.on_host is None:
            save_state(folder / TRAINING_STATE, self.tensors, self.values)
        else:  # first, because all ranks take part and a failure of one is told to all
            write_slices(folder / TRAINING_STATE, self.tensors, ranks.on_host)
            if ranks.is_first:
                save_values(folder / TRAINING_STATE, self.values)
        if self.model is not None:
            self.model.write(folder)
            self.tokenizer.save(folder)


def take_snapshot(
    moving: Moving,
    tokenizer: TextTokenizer,
    device: Device,
    *,
    copied: bool,
    ranks: Ranks = ALONE,
) -> Snapshot:
    """What a checkpoint of this moment holds; all ranks take one together.

    Args:
        moving: between two steps.
        tokenizer: goes into the model's directory.
        device: whose random numbers are saved.
        copied: True copies every tensor to the CPU, so that training may go on while it is
            written. False copies nothing: write it before the next step; one tensor at a time then
            comes to the CPU.
    """
    head = moving.value_head
    named = named_parameters(moving.model, head)
    moving.window.gather_on_first(ranks)
    tensors = {
        **{f"optimizer.{k}": v for k, v in optimizer_tensors(moving.optimizers, named).items()},
        **{f"value_head.{k}": v for k, v in ({} if head is None else head.state_dict()).items()},
        **{f"memory.{name}": value for name, value in moving.memory.items()},
        **{f"window.{name}": sums for name, sums in moving.window.tensors().items()},
        "skipped": moving.skipped,
    }
    if not ranks.is_first:  # what all have whole, the first one writes
        tensors = {name: tensor for name, tensor in tensors.items() if is_sliced(tensor)}
    tensors |= {f"{rng_of(ranks)}{name}": state for name, state in device.rng_state().items()}
    values = {
        "progress": asdict(moving.progress),
        "grad_scaler": moving.scaler.state_dict(),
        "versions": {"wmtp": __version__, "torch": torch.__version__},
    }
    model = stored_model(moving.model, tokenizer, ranks, copied=copied)
    return Snapshot(model, tokenizer, _copied_to_cpu(tensors) if copied else tensors, values)


def rng_of(ranks: Ranks) -> str:
    """What the names of a rank's random number states begin with."""
    return f"rng{ranks.index or ''}."


def _copied_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_checkpoint(folder: Path, moving: Moving, device: Device, ranks: Ranks = ALONE) -> None:
    """Put a checkpoint's state back; the model's weights are already loaded from it.

    Any number of ranks goes on from what any number wrote. A rank without random numbers of its
    own in the checkpoint keeps those it started with.

    Raises:
        CheckpointError: the state does not belong to this model.
    """
    state = folder / TRAINING_STATE
    values = load_values(state)
    try:
        named = named_parameters(moving.model, moving.value_head)
        tensors = _load_tensors(state, moving, named, ranks)
        load_optimizer_tensors(moving.optimizers, named, part_of(tensors, "optimizer."))
        if moving.value_head is not None:
            moving.value_head.load_state_dict(part_of(tensors, "value_head."))
        for name, value in moving.memory.items():
            value.copy_(tensors[f"memory.{name}"])
        if ranks.is_first:  # the sums of all ranks are in its hands
            moving.window.load(part_of(tensors, "window."))
        moving.skipped.copy_(tensors["skipped"])
        for name, value in Progress(**values["progress"]).__dict__.items():
            setattr(moving.progress, name, value)
        moving.scaler.load_state_dict(values["grad_scaler"])
    except (KeyError, TypeError, RuntimeError) as error:
        if is_lost_rank(error):
            raise
        raise CheckpointError(
            f"{folder} holds the state of another recipe ({error}). Resume with the recipe that "
            "wrote it, or start anew with paths.models.base set to it."
        ) from error
    rng = part_of(tensors, rng_of(ranks))
    if rng or ranks.is_first:
        device.set_rng_state(rng)


def _load_tensors(
    state: Path, moving: Moving, named: list[tuple[str, nn.Parameter]], ranks: Ranks
) -> dict[str, Tensor]:
    """All tensors of a training state; those of the optimizer as this rank holds them."""
    if ranks.count == 1 and (state / TENSORS_FILE).is_file():
        return load_tensors(state)
    names = tensor_names(state)
    of_optimizer = {name for name in names if name.startswith("optimizer.")}
    tensors = load_tensors(state, only=names - of_optimizer)
    places = optimizer_places(moving.optimizers, named) if of_optimizer else {}
    wanted = {f"optimizer.{name}": place for name, place in places.items()}
    misplaced = wanted.keys() ^ of_optimizer
    if misplaced:
        raise KeyError(min(misplaced))
    read_slices(state, wanted)
    return tensors | wanted
