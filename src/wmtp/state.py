"""How far a run has come, and everything it needs to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmtp import __version__
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import CheckpointError
from wmtp.evaluation.window import Window
from wmtp.model.hf_layout import StoredForm, stored_form
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import SpecialTokens
from wmtp.model.value_head import ValueHead
from wmtp.optim import hidden_matrices, load_optimizer_tensors, optimizer_tensors
from wmtp.runtime.device import Device
from wmtp.runtime.training_state import load_state, part_of, save_state

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
    """

    step: int = 0
    rows_read: int = 0
    tokens_seen: int = 0
    best: float | None = None
    stale_evaluations: int = 0
    stopped_early: bool = False

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
        first_bad_step: on the device, infinite while every gradient was finite.
    """

    model: MultiTokenModel
    value_head: ValueHead | None
    optimizers: tuple[torch.optim.Optimizer, ...]
    scaler: torch.amp.GradScaler
    window: Window
    progress: Progress
    memory: dict[str, Tensor]
    first_bad_step: Tensor


def named_parameters(
    model: MultiTokenModel, value_head: ValueHead | None
) -> list[tuple[str, nn.Parameter]]:
    """Every parameter by its name in a checkpoint's training state."""
    beside = [] if value_head is None else value_head.named_parameters(prefix="value_head")
    return [*model.named_parameters(), *beside]


def save_model_directory(model: MultiTokenModel, tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a Hugging Face directory: config, weights, tokenizer."""
    stored_model(model, tokenizer).write(folder)
    tokenizer.save(folder)


def stored_model(model: MultiTokenModel, tokenizer: TextTokenizer) -> StoredForm:
    """The model as its Hugging Face directory holds it."""
    bos = tokenizer.bos_ids[0] if tokenizer.bos_ids else None
    return stored_form(model, special_tokens=SpecialTokens(bos, (tokenizer.eos_id,)))


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
    """Everything a checkpoint will hold, between two steps.

    Attributes:
        model: what goes into the Hugging Face directory.
        tensors: what goes into ``training_state/``.
        values: what goes beside them, as JSON.
    """

    model: StoredForm
    tokenizer: TextTokenizer
    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Fill a folder: the model as a Hugging Face directory, the rest in ``training_state/``.

        Raises:
            OSError: the disk refused.
        """
        self.model.write(folder)
        self.tokenizer.save(folder)
        save_state(folder / TRAINING_STATE, self.tensors, self.values)


def take_snapshot(
    moving: Moving, tokenizer: TextTokenizer, device: Device, *, copied: bool
) -> Snapshot:
    """What a checkpoint of this moment holds.

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
    tensors = {
        **{f"optimizer.{k}": v for k, v in optimizer_tensors(moving.optimizers, named).items()},
        **{f"value_head.{k}": v for k, v in ({} if head is None else head.state_dict()).items()},
        **{f"memory.{name}": value for name, value in moving.memory.items()},
        **{f"rng.{name}": state for name, state in device.rng_state().items()},
        **{f"window.{name}": sums for name, sums in moving.window.tensors().items()},
    }
    values = {
        "progress": asdict(moving.progress),
        "grad_scaler": moving.scaler.state_dict(),
        "versions": {"wmtp": __version__, "torch": torch.__version__},
    }
    model = stored_model(moving.model, tokenizer)
    if copied:
        model = replace(model, tensors=_copied_to_cpu(model.tensors))
        tensors = _copied_to_cpu(tensors)
    return Snapshot(model, tokenizer, tensors, values)


def _copied_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_checkpoint(folder: Path, moving: Moving, device: Device) -> None:
    """Put a checkpoint's state back; the model's weights are already loaded from it.

    Raises:
        CheckpointError: the state does not belong to this model.
    """
    tensors, values = load_state(folder / TRAINING_STATE)

    try:
        named = named_parameters(moving.model, moving.value_head)
        load_optimizer_tensors(moving.optimizers, named, part_of(tensors, "optimizer."))
        if moving.value_head is not None:
            moving.value_head.load_state_dict(part_of(tensors, "value_head."))
        for name, value in moving.memory.items():
            value.copy_(tensors[f"memory.{name}"])
        moving.window.load(part_of(tensors, "window."))
        for name, value in Progress(**values["progress"]).__dict__.items():
            setattr(moving.progress, name, value)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds the state of another recipe ({error}). Resume with the recipe that "
            "wrote it, or start anew with paths.models.base set to it."
        ) from error
    moving.scaler.load_state_dict(values["grad_scaler"])
    device.set_rng_state(part_of(tensors, "rng."))
