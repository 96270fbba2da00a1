"""Linear heads: one matrix per extra token ahead, on the trunk's own output.

Head ``h = 1 .. H-1`` at position ``s`` has the logits ``W_h g(s)``, ``g`` the trunk's output that
head 0 turns into logits with the unembedding.

Source:
    Cai et al. 2024 (arXiv:2401.10774) without its residual layer.
"""

from typing import cast, final

import torch
from torch import Tensor, nn

from wmtp.model.heads.base import ExtraHeads, HeadsShape
from wmtp.model.llama import Block
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.trunk import Positions, Trunk, TrunkStates


@final
class LinearHeads(ExtraHeads):
    """The matrices."""

    def __init__(self, trunk_shape: LlamaShape, heads_shape: HeadsShape) -> None:
        super().__init__(heads_shape)
        self.heads = nn.ModuleList(
            nn.Linear(trunk_shape.hidden_size, trunk_shape.vocab_size, bias=False)
            for _ in range(heads_shape.horizon - 1)
        )

    @property
    def matrices(self) -> list[nn.Parameter]:
        """One ``[V, D]`` per head, from the nearest token to the farthest."""
        return [cast(nn.Parameter, head.weight) for head in self.heads]

    @property
    def blocks(self) -> list[Block]:
        """None."""
        return []

    def forward(
        self, states: TrunkStates, embedded_BTD: Tensor, positions: Positions
    ) -> tuple[Tensor, ...]:
        """The trunk's output, for every head."""
        return (states.post_norm,) * len(self.heads)

    @torch.no_grad()
    def start_on(self, trunk: Trunk) -> None:
        """Begin as the trunk's own prediction with half its confidence."""
        for matrix_VD in self.matrices:
            matrix_VD.copy_(trunk.unembedding_VD / 2)

    def unembeddings(self, shared_VD: nn.Parameter) -> tuple[nn.Parameter, ...]:
        """The trunk's matrix for head 0, and one for each head after it."""
        return (shared_VD, *self.matrices)
