"""How far stage 1 has come, and its checkpoints."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from wmtp.checkpoints.training_state import load_state, part_of, save_state
from wmtp.errors import CheckpointError
from wmtp.model.value_head import ValueHead
from wmtp.optim import Optimizers, load_optimizer_tensors, optimizer_tensors


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


@dataclass(frozen=True)
class Learning:
    """What changes with every step of stage 1.

    Attributes:
        best: the head's tensors where it measured best.
    """

    head: ValueHead
    optimizers: Optimizers
    progress: ValueProgress
    best: dict[str, Tensor]


def save_stage(folder: Path, learning: Learning) -> None:
    """Fill a checkpoint of stage 1."""
    named = list(learning.head.named_parameters(prefix="value_head"))
    tensors = {
        **{f"head.{name}": value for name, value in learning.head.state_dict().items()},
        **{f"best.{name}": value for name, value in learning.best.items()},
        **{f"optimizer.{k}": v for k, v in optimizer_tensors(learning.optimizers, named).items()},
    }
    save_state(folder, tensors, asdict(learning.progress))


def load_stage(folder: Path, learning: Learning) -> None:
    """Put back what ``save_stage`` wrote.

    Raises:
        CheckpointError: the state does not belong to this value head.
    """
    tensors, values = load_state(folder)

    try:
        learning.head.load_state_dict(part_of(tensors, "head."))
        for name, kept in learning.best.items():
            kept.copy_(tensors[f"best.{name}"])
        named = list(learning.head.named_parameters(prefix="value_head"))
        load_optimizer_tensors(learning.optimizers, named, part_of(tensors, "optimizer."))
        for name, value in asdict(ValueProgress(**values)).items():
            setattr(learning.progress, name, value)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds stage 1 of another recipe ({error}). Resume with the recipe that "
            "wrote it, or start anew with another --run-name."
        ) from error
    best = learning.progress.best
    if best is not None and not math.isfinite(best):
        raise CheckpointError(f"{folder} holds a best figure that is not finite.")
