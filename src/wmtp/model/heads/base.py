"""What every kind of head offers, and the settings that tell kinds apart."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from wmtp.model.llama import Block
from wmtp.model.trunk import Positions, Trunk, TrunkStates

Kind = Literal["sequential", "parallel", "linear"]
"""The architecture of the heads beyond the trunk's own."""

Hidden = Literal["post_norm", "pre_norm"]
"""Which side of the final norm travels from the trunk to sequential heads, and from one to the
next."""


Context = Literal["chained", "trunk", "mix"]
"""Which rows a depth of sequential heads attends to: its own chain (as transformers and vLLM
draft), rows fed by the trunk (as llama.cpp does), or in turns, step by step."""


@dataclass(frozen=True)
class HeadsShape:
    """The heads beyond the trunk's own.

    Attributes:
        horizon: H, tokens predicted at once, the trunk's next token included; 1 means no heads.
        hidden: which hidden state feeds a depth of sequential heads.
        head_scale: the factor of each head in the loss, recorded with the checkpoint. Empty where
            nothing is to be recorded.
        kind: the architecture of a head.
        context: which rows a depth of sequential heads attends to.

    Raises:
        ValueError: the horizon is not positive or ``head_scale`` has another length.
    """

    horizon: int
    hidden: Hidden = "post_norm"
    head_scale: tuple[float, ...] = ()
    kind: Kind = "sequential"
    context: Context = "chained"

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon {self.horizon} must be at least 1")
        if self.head_scale and len(self.head_scale) != self.horizon:
            raise ValueError(f"head_scale {self.head_scale} needs {self.horizon} factors")


class ExtraHeads(nn.Module, ABC):
    """Heads ``1 .. H-1``; head 0 is the trunk's own output.

    Attributes:
        checkpointing: recompute each head in the backward pass instead of keeping its insides.
    """

    def __init__(self, shape: HeadsShape) -> None:
        super().__init__()
        self.shape = shape
        self.checkpointing = False

    def begin_step(self, step: int) -> None:
        """Know the number of the training step that follows; most heads do the same in each."""

    @property
    @abstractmethod
    def blocks(self) -> list[Block]:
        """The transformer blocks inside the heads, if any."""

    @abstractmethod
    def forward(
        self, states: TrunkStates, embedded_BTD: Tensor, positions: Positions
    ) -> tuple[Tensor, ...]:
        """Hidden states of all heads.

        Args:
            states: of the trunk at the ``S`` positions of each row.
            embedded_BTD: embeddings of tokens ``0 .. S + H - 2`` of each row; only heads that are
                teacher-forced read them.
            positions: the trunk's rotations and mask.

        Returns:
            ``H - 1`` tensors ``[B, S, D]``, ready for their unembeddings.
        """

    @abstractmethod
    def start_on(self, trunk: Trunk) -> None:
        """Set new heads, just initialized as from scratch, to begin well on a trained trunk."""

    def unembeddings(self, shared_VD: nn.Parameter) -> tuple[nn.Parameter, ...]:
        """One matrix ``[V, D]`` for the trunk and all heads together, or H: one for each."""
        return (shared_VD,)
