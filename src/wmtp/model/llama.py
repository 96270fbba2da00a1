"""The trunk: a Llama-family decoder that agrees with ``transformers`` to rounding.

Read from the bottom: ``LlamaTrunk`` embeds tokens and runs the blocks, a ``Block`` is attention
and a gated MLP around a residual stream, and all attention goes through ``attend``. Names of
submodules are those of the Hugging Face layout. ``B S D`` batch, positions, width; ``T`` cached
and new positions; ``N G C`` heads, key-value groups, width of a head.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wmtp.model.kv_cache import KVCache, LayerCache
from wmtp.model.rotary import Llama3Scaling, RotaryTable, rotate


@dataclass(frozen=True)
class LlamaShape:
    """Everything that fixes the trunk's tensors and arithmetic.

    Attributes:
        head_dim: width of one attention head; ``num_heads * head_dim`` need not be ``hidden_size``.
        max_seq_length: most positions of one row, cached ones included.
        norm_eps: added to the mean square inside every norm.
        qk_norm: norm queries and keys per head before the rotation (Qwen3).
        tie_embeddings: the unembedding is the embedding.
        final_norm_gain: the norm before the unembedding (of the trunk and of every head) has a
            learned gain. Without one, what it passes on and what it reads are the same to the
            next norm, so that one checkpoint suits engines that chain heads after the norm and
            engines that chain them before it.
        dropout: probability on both residual branches of a block while training.

    Raises:
        ValueError: the numbers do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_length: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    qk_norm: bool = False
    rope_scaling: Llama3Scaling | None = None
    final_norm_gain: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")
        if not self.qk_norm and self.hidden_size % self.num_heads:
            # transformers' LlamaConfig refuses it, although head_dim makes it harmless.
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1)")


def attend(query_BNSC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of grouped heads: the one place where positions meet.

    Args:
        query_BNSC: the new positions' queries.
        key_BGTC: keys of cached and new positions; each group serves ``N / G`` heads.
        value_BGTC: values beside the keys.
        mask: bool, True where a query may look, broadcast to ``[B, N, S, T]``. None means causal,
            or, for a single new position, everything.

    Returns:
        ``[B, N, S, C]``.
    """
    positions = query_BNSC.shape[2]
    # The groups are not expanded: on CPU this is as fast in training and twice as fast in decoding.
    return F.scaled_dot_product_attention(
        query_BNSC,
        key_BGTC,
        value_BGTC,
        attn_mask=mask,
        is_causal=mask is None and positions > 1,
        enable_gqa=query_BNSC.shape[1] != key_BGTC.shape[1],
    )


def attention_mask(
    positions: int, cached: int, documents_BS: Tensor | None, device: torch.device
) -> Tensor | None:
    """Where a query may look, built once per forward; None where ``attend`` needs no mask.

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


class RMSNorm(nn.Module):
    """Divide by the root mean square, times a gain; the gain is a constant if not ``learned``."""

    weight: Tensor

    def __init__(self, width: int, eps: float, *, learned: bool = True) -> None:
        super().__init__()
        self.eps = eps
        if learned:
            self.weight = nn.Parameter(torch.ones(width))
        else:
            self.register_buffer("weight", torch.ones(width))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Norm over the last dimension."""
        # Under autocast a matrix product hands over bf16, for which there is no kernel with a
        # float32 gain; torch would warn and take the slow path.
        x_BSD = x_BSD.to(self.weight.dtype)
        return F.rms_norm(x_BSD, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query_width = shape.num_heads * shape.head_dim
        group_width = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, group_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, group_width, bias=False)
        self.o_proj = nn.Linear(query_width, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def forward(
        self,
        x_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LayerCache | None,
    ) -> Tensor:
        """Each position's mixture of what it may see, ``[B, S, D]``."""
        query_BSNC = self.q_proj(x_BSD).unflatten(-1, (-1, self.head_dim))
        key_BSGC = self.k_proj(x_BSD).unflatten(-1, (-1, self.head_dim))
        value_BSGC = self.v_proj(x_BSD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            query_BSNC, key_BSGC = self.q_norm(query_BSNC), self.k_norm(key_BSGC)
        # A norm gives float32 under autocast; queries and keys must match the values.
        query_BNSC = rotate(query_BSNC.transpose(1, 2), rope).to(value_BSGC.dtype)
        key_BGTC = rotate(key_BSGC.transpose(1, 2), rope).to(value_BSGC.dtype)
        value_BGTC = value_BSGC.transpose(1, 2)
        if cache is not None:
            key_BGTC, value_BGTC = cache.extend(key_BGTC, value_BGTC)
        mixed_BNSC = attend(query_BNSC, key_BGTC, value_BGTC, mask)
        mixed_BSD: Tensor = self.o_proj(mixed_BNSC.transpose(1, 2).flatten(2))
        return mixed_BSD


class SwiGLU(nn.Module):
    """The gated MLP: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Transform each position by itself."""
        out_BSD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
        return out_BSD


class Block(nn.Module):
    """Attention, then the MLP, each normed before and added to the residual stream after."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.mlp = SwiGLU(shape)

    def forward(
        self,
        x_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """One layer, ``[B, S, D]`` to ``[B, S, D]``."""
        attended_BSD = self.self_attn(self.input_layernorm(x_BSD), rope, mask, cache)
        x_BSD = x_BSD + F.dropout(attended_BSD, self.dropout, self.training)
        transformed_BSD = self.mlp(self.post_attention_layernorm(x_BSD))
        return x_BSD + F.dropout(transformed_BSD, self.dropout, self.training)


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Run ``module`` now and again in the backward pass, so that only its inputs are kept."""
    if not torch.is_grad_enabled():
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False)


class LlamaTrunk(nn.Module):
    """Embedding, blocks, final norm and unembedding.

    Attributes:
        rope: the positions' table, shared with the heads.
        checkpointing: recompute each block in the backward pass instead of keeping its insides.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.rope = RotaryTable(
            shape.head_dim, shape.rope_theta, shape.rope_scaling, shape.max_seq_length
        )
        self.checkpointing = False
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps, learned=shape.final_norm_gain)
        self.lm_head = (
            None
            if shape.tie_embeddings
            else nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        )

    @property
    def blocks(self) -> list[Block]:
        """The layers, from the first to the last."""
        return cast(list[Block], list(self.layers))

    @property
    def unembedding_VD(self) -> nn.Parameter:
        """The matrix that turns a normed hidden state into logits."""
        matrix = self.embed_tokens if self.lm_head is None else self.lm_head
        return cast(nn.Parameter, matrix.weight)

    def positions(
        self, count: int, documents_BS: Tensor | None, cached: int
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Rotations and mask of ``count`` new positions after ``cached`` ones.

        Raises:
            ValueError: they exceed ``max_seq_length``, or documents come with cached positions.
        """
        end = cached + count
        if end > self.shape.max_seq_length:
            raise ValueError(f"{end} positions exceed max_seq_length {self.shape.max_seq_length}")
        if documents_BS is not None and cached:
            raise ValueError("documents are not known for cached positions; pass whole rows")
        device = self.embed_tokens.weight.device
        mask = attention_mask(count, cached, documents_BS, device)
        return self.rope.positions(cached, end, device), mask

    def forward(
        self,
        embedded_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the blocks over embedded tokens.

        Args:
            embedded_BSD: embeddings of the new tokens.
            rope: rotations from ``positions``.
            mask: mask from ``positions``.
            cache: keys and values of earlier positions; the new ones are added to it.

        Returns:
            Hidden states before and after the final norm, ``[B, S, D]`` each.
        """
        x_BSD = embedded_BSD
        for index, block in enumerate(self.blocks):
            inputs = (x_BSD, rope, mask, None if cache is None else cache.layers[index])
            x_BSD = recomputed(block, *inputs) if self.checkpointing else block(*inputs)
        return x_BSD, self.norm(x_BSD)
