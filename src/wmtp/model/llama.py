"""The trunk: a Llama-family decoder that agrees with ``transformers`` to rounding.

Read from the bottom: ``LlamaTrunk`` embeds tokens and runs the blocks, a ``Block`` is attention
and a gated MLP around a residual stream, and all attention goes through ``attention.attend``. Names
of submodules are those of the Hugging Face layout. ``B S D`` batch, positions, width; ``T`` cached
and new positions; ``N G C`` heads, key-value groups, width of a head.
"""

from dataclasses import replace
from typing import NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmtp.model.attention import attend
from wmtp.model.kv_cache import Cache, KVCache, LayerCache
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.rotary import RotaryTable, rotate
from wmtp.model.trunk import Positions, Trunk, TrunkStates, recomputed


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

    @torch.no_grad()
    def start_with(self, gain_D: Tensor) -> None:
        """Set the gain that training begins with; a constant one stays 1."""
        if isinstance(self.weight, nn.Parameter):
            self.weight.copy_(gain_D)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Norm over the last dimension."""
        # Under autocast a matrix product hands over bf16, for which there is no kernel with a
        # float32 gain; torch would warn and take the slow path.
        x_BSD = x_BSD.to(self.weight.dtype)
        return F.rms_norm(x_BSD, self.weight.shape, self.weight, self.eps)


class ContextRows(NamedTuple):
    """Rows that a block's own may look at, and that are asked nothing themselves.

    Attributes:
        rows: ``[B, C, D]``, as they would enter the block.
        rope: the rotations of their positions.
    """

    rows: Tensor
    rope: tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions.

    Attributes:
        tiled: scores are made in tiles, for a device without a fused kernel.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.tiled = False
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
        context: ContextRows | None = None,
    ) -> Tensor:
        """Each position's mixture of what it may see, ``[B, S, D]``."""
        query_BSNC = self.q_proj(x_BSD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None:
            query_BSNC = self.q_norm(query_BSNC)
        key_BGTC, value_BGTC = self._keys_and_values(x_BSD, rope)
        # A norm gives float32 under autocast; queries and keys must match the values.
        query_BNSC = rotate(query_BSNC.transpose(1, 2), rope).to(value_BGTC.dtype)
        if context is not None:
            earlier_BGTC, values_BGTC = self._keys_and_values(*context)
            key_BGTC = torch.cat((earlier_BGTC, key_BGTC), dim=2)
            value_BGTC = torch.cat((values_BGTC, value_BGTC), dim=2)
        if cache is not None:
            key_BGTC, value_BGTC = cache.extend(key_BGTC, value_BGTC)
        # a context's rows come first, and cached ones too: the mask alone says what they may see
        causal = context is None and cache is None
        mixed_BNSC = attend(query_BNSC, key_BGTC, value_BGTC, mask, causal=causal, tiled=self.tiled)
        mixed_BSD: Tensor = self.o_proj(mixed_BNSC.transpose(1, 2).flatten(2))
        return mixed_BSD

    def _keys_and_values(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        key_BSGC = self.k_proj(x_BSD).unflatten(-1, (-1, self.head_dim))
        value_BSGC = self.v_proj(x_BSD).unflatten(-1, (-1, self.head_dim))
        if self.k_norm is not None:
            key_BSGC = self.k_norm(key_BSGC)
        key_BGSC = rotate(key_BSGC.transpose(1, 2), rope).to(value_BSGC.dtype)
        return key_BGSC, value_BSGC.transpose(1, 2)


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
        context: ContextRows | None = None,
    ) -> Tensor:
        """One layer, ``[B, S, D]`` to ``[B, S, D]``; ``mask`` counts the context's rows first."""
        if context is not None:
            context = context._replace(rows=self.input_layernorm(context.rows))
        attended_BSD = self.self_attn(self.input_layernorm(x_BSD), rope, mask, cache, context)
        x_BSD = x_BSD + F.dropout(attended_BSD, self.dropout, self.training)
        transformed_BSD = self.mlp(self.post_attention_layernorm(x_BSD))
        return x_BSD + F.dropout(transformed_BSD, self.dropout, self.training)


@final
class LlamaTrunk(Trunk):
    """Embedding, blocks, final norm and unembedding, under the names of the Hugging Face layout."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__(shape)
        self.rope = rotary_table(shape)
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
        """The embedding itself where the two are tied."""
        matrix = self.embed_tokens if self.lm_head is None else self.lm_head
        return cast(nn.Parameter, matrix.weight)

    @property
    def embedding_VD(self) -> nn.Parameter:
        """The matrix whose rows are the tokens' embeddings."""
        return cast(nn.Parameter, self.embed_tokens.weight)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The tokens' embeddings, ``[B, T, D]``."""
        embedded_BTD: Tensor = self.embed_tokens(tokens_BT)
        return embedded_BTD

    def forward(
        self, embedded_BSD: Tensor, positions: Positions, cache: Cache | None = None
    ) -> TrunkStates:
        """Run the blocks over embedded tokens.

        Args:
            embedded_BSD: embeddings of the new tokens.
            positions: where they stand.
            cache: keys and values of earlier positions, a ``KVCache``; the new ones are added.
        """
        assert cache is None or isinstance(cache, KVCache)
        x_BSD = before_last_BSD = embedded_BSD
        for index, block in enumerate(self.blocks):
            before_last_BSD = x_BSD
            layer_cache = None if cache is None else cache.layers[index]
            inputs = (x_BSD, positions.rope, positions.mask, layer_cache)
            x_BSD = recomputed(block, *inputs) if self.checkpointing else block(*inputs)
        return TrunkStates(before_last_BSD, x_BSD, self.norm(x_BSD))

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for so many positions of a row."""
        return KVCache(self.shape.num_layers, capacity)

    def set_dropout(self, probability: float) -> None:
        """Drop out with this probability on both residual branches while training."""
        for block in self.blocks:
            block.dropout = probability

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its insides."""
        self.checkpointing = enabled

    def set_tiled_attention(self, enabled: bool) -> None:
        """Make the scores of attention in tiles."""
        for block in self.blocks:
            block.self_attn.tiled = enabled

    def final_gain_D(self) -> Tensor:
        """The gain of the norm before the unembedding."""
        return self.norm.weight

    def absorb_final_gain(self) -> None:
        """Move the gain of the last norm into the unembedding, which is then not tied."""
        matrix_VD = self.unembedding_VD.detach() * self.final_gain_D()
        self.shape = replace(self.shape, final_norm_gain=False, tie_embeddings=False)
        with torch.device("meta"):
            self.lm_head = nn.Linear(self.shape.hidden_size, self.shape.vocab_size, bias=False)
        self.lm_head.weight = nn.Parameter(matrix_VD)
        self.norm = RMSNorm(matrix_VD.shape[1], self.shape.norm_eps, learned=False)

    def compile_blocks(self) -> None:
        """Let ``torch.compile`` fuse the blocks; names of parameters stay as they are."""
        for block in self.blocks:
            block.compile()


def rotary_table(shape: LlamaShape) -> RotaryTable:
    """The rotations of a shape's positions."""
    return RotaryTable(shape.head_dim, shape.rope_theta, shape.rope_scaling, shape.max_seq_length)
