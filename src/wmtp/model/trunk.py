"""What every trunk offers: tokens in, hidden states out, and the matrices at both ends.

``model.MultiTokenModel`` and the heads know a trunk by this page alone. ``llama.py`` is our own
decoder, ``hf_trunk.py`` runs any dense causal model of ``transformers`` through its own code.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wmtp.model.kv_cache import Cache
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.rotary import RotaryTable


@dataclass(frozen=True)
class Positions:
    """Where the new tokens of a forward pass stand.

    Attributes:
        rope: cosines and sines of their rotations.
        mask: bool, True where a query may look, broadcast to ``[B, N, S, T]``; None where plain
            causal attention is meant.
        documents: int index ``[B, S]`` of each token's document, or None: one document a row.
        cached: number of positions before the new ones.
    """

    rope: tuple[Tensor, Tensor]
    mask: Tensor | None
    documents: Tensor | None
    cached: int


@dataclass(frozen=True)
class TrunkStates:
    """What heads may read, ``[B, S, D]`` each.

    Attributes:
        before_last: what enters the trunk's last block.
        pre_norm: the last block's output.
        post_norm: the same after the final norm, ready for the unembedding.
    """

    before_last: Tensor
    pre_norm: Tensor
    post_norm: Tensor


class Trunk(nn.Module, ABC):
    """The shared body of a model.

    Attributes:
        shape: its sizes; also the shape of a head's block beside it.
        checkpointing: recompute each block in the backward pass instead of keeping its insides.
        longest_packed_row: in rows up to this, several documents give what each gives alone.
        attention_is_lean: its attention is as ``set_tiled_attention`` said.
    """

    rope: RotaryTable
    longest_packed_row: int

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.checkpointing = False
        self.attention_is_lean = True
        self.longest_packed_row = shape.max_seq_length

    @property
    @abstractmethod
    def unembedding_VD(self) -> nn.Parameter:
        """The matrix that turns a normed hidden state into logits."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, from the first to the last; empty where they are not known apart."""

    @property
    @abstractmethod
    def embedding_VD(self) -> nn.Parameter:
        """The matrix whose rows are the tokens' embeddings."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The tokens' embeddings, ``[B, T, D]``."""

    @abstractmethod
    def forward(
        self, embedded_BSD: Tensor, positions: Positions, cache: Cache | None = None
    ) -> TrunkStates:
        """Run the blocks over embedded tokens; new positions are added to the cache."""

    @abstractmethod
    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for so many positions of a row."""

    @abstractmethod
    def set_dropout(self, probability: float) -> None:
        """Drop out with this probability while training."""

    @abstractmethod
    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its insides."""

    @abstractmethod
    def set_tiled_attention(self, enabled: bool) -> None:
        """Make the scores of attention in tiles, for a device without a fused kernel."""

    @abstractmethod
    def final_gain_D(self) -> Tensor:
        """The gain of the norm before the unembedding, or what comes nearest to it."""

    @abstractmethod
    def compile_blocks(self) -> None:
        """Let ``torch.compile`` fuse the blocks; names of parameters stay as they are."""

    def positions(self, count: int, documents_BS: Tensor | None, cached: int) -> Positions:
        """Where ``count`` new tokens after ``cached`` ones stand.

        Raises:
            ValueError: they exceed ``max_seq_length``, or documents come with cached positions.
        """
        end = cached + count
        if end > self.shape.max_seq_length:
            raise ValueError(f"{end} positions exceed max_seq_length {self.shape.max_seq_length}")
        if documents_BS is not None and cached:
            raise ValueError("documents are not known for cached positions; pass whole rows")
        device = self.embedding_VD.device
        return Positions(
            rope=self.rope.positions(cached, end, device),
            mask=attention_mask(count, cached, documents_BS, device),
            documents=documents_BS,
            cached=cached,
        )


def attention_mask(
    positions: int, cached: int, documents_BS: Tensor | None, device: torch.device
) -> Tensor | None:
    """Where a query may look, built once per forward; None where no mask is needed.

    Args:
        positions: number of new positions.
        cached: number of positions before them.
        documents_BS: index of the document of each position; a query stays in its document.
        device: where the mask is needed.

    Returns:
        bool ``[B, 1, S, S]`` with documents, ``[S, T]`` after cached positions, or None.
    """
    if documents_BS is not None:
        same_BSS = documents_BS[:, :, None] == documents_BS[:, None, :]
        return same_BSS.tril().unsqueeze(1)
    if cached == 0 or positions == 1:
        return None
    visible = torch.ones(positions, cached + positions, dtype=torch.bool, device=device)
    return visible.tril(diagonal=cached)


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Run ``module`` now and again in the backward pass, so that only its inputs are kept."""
    if not torch.is_grad_enabled():
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False)
