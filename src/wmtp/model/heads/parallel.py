"""Parallel heads: one block per extra token ahead, all on the same state of the trunk.

Head ``h = 1 .. H-1`` at position ``s`` sees the trunk at ``s`` and nothing after:

    n_h(s) = norm_h(block_h(g(s)))

``g`` is what enters the trunk's last block, so that the last block is head 0's counterpart of the
heads' blocks. A trunk run by foreign code does not show that state; there ``g`` is its output.

Source:
    Gloeckle et al. 2024 (arXiv:2404.19737), and the code of its released checkpoints, where all
    heads share one last norm; here each has its own, as in ``mtp_llama``.
"""

import copy
from typing import cast, final

import torch
from torch import Tensor, nn

from wmtp.model.heads.base import ExtraHeads, HeadsShape
from wmtp.model.kv_cache import LayerCache
from wmtp.model.llama import Block, LlamaTrunk, RMSNorm
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.trunk import Positions, Trunk, TrunkStates, recomputed


class ParallelHead(nn.Module):
    """One head: block and norm."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.block = Block(shape)
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps, learned=shape.final_norm_gain)

    def forward(
        self,
        state_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """From the trunk's state to a hidden state ready for the unembedding."""
        normed_BSD: Tensor = self.norm(self.block(state_BSD, rope, mask, cache))
        return normed_BSD


@final
class ParallelHeads(ExtraHeads):
    """The heads side by side."""

    def __init__(self, trunk_shape: LlamaShape, heads_shape: HeadsShape) -> None:
        super().__init__(heads_shape)
        self.heads = nn.ModuleList(
            ParallelHead(trunk_shape) for _ in range(heads_shape.horizon - 1)
        )

    @property
    def each(self) -> list[ParallelHead]:
        """The heads from the nearest token to the farthest."""
        return cast(list[ParallelHead], list(self.heads))

    @property
    def blocks(self) -> list[Block]:
        """One per head."""
        return [head.block for head in self.each]

    def forward(
        self, states: TrunkStates, embedded_BTD: Tensor, positions: Positions
    ) -> tuple[Tensor, ...]:
        """Run all heads; the embeddings are not read."""
        inputs = (states.before_last, positions.rope, positions.mask)
        return tuple(
            recomputed(head, *inputs) if self.checkpointing else head(*inputs) for head in self.each
        )

    @torch.no_grad()
    def start_on(self, trunk: Trunk) -> None:
        """Begin as the trunk's own prediction with half its confidence.

        On our own trunk each block is a copy of the last one, which reads the same state; on any
        other the blocks are as from scratch, whose output is zero. Measured on SmolLM2-135M with a
        frozen trunk, MBPP, 12 steps of 512 tokens, cross-entropy of heads 1-3 at the last: 6.6 6.9
        6.7 for copies, 8.2 8.5 8.4 for blocks from scratch.
        """
        for head in self.each:
            if isinstance(trunk, LlamaTrunk):
                head.block.load_state_dict(copy.deepcopy(trunk.blocks[-1].state_dict()))
            head.norm.start_with(trunk.final_gain_D() / 2)
