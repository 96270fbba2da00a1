"""Tiled attention inside the code of ``transformers``, through its registry of attentions."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from wmtp.model.attention import attend
from wmtp.model.transformers_calls import quiet_transformers

FUSED: Final = "sdpa"
TILED: Final = "wmtp_tiled"
UNUSUAL: Final = ("position_bias", "cache", "softcap")
"""What a model may pass along that tiles do not know."""


def use_tiled_attention(network: PreTrainedModel, enabled: bool) -> bool:
    """Let a model make the scores of its attention in tiles, or no longer.

    Returns:
        Whether it does as asked. A model whose code does not ask the registry, or computes
        something that fused kernels do not, goes on in its own way.
    """
    before, wanted = (FUSED, TILED) if enabled else (TILED, FUSED)
    if network.config._attn_implementation == before:
        with quiet_transformers():  # it warns where it cannot, which the caller is told instead
            network.set_attn_implementation(wanted)
    return bool(network.config._attn_implementation == TILED) == enabled


def _attend_in_tiles(
    module: nn.Module,
    query_BNSC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As ``sdpa_attention_forward``, which does what tiles do not."""
    looks_back = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    plain = attention_mask is None and (looks_back or query_BNSC.shape[2] == 1)
    masked = attention_mask is not None and attention_mask.dtype == torch.bool
    unusual = dropout > 0 or any(others.get(key) is not None for key in UNUSUAL)
    if unusual or not (plain or masked):
        everything = (module, query_BNSC, key_BGTC, value_BGTC, attention_mask)
        mixed: tuple[Tensor, None] = sdpa_attention_forward(
            *everything, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
        return mixed
    mixed_BNSC = attend(query_BNSC, key_BGTC, value_BGTC, attention_mask, tiled=True, scale=scaling)
    return mixed_BNSC.transpose(1, 2).contiguous(), None


AttentionInterface.register(TILED, _attend_in_tiles)
AttentionMaskInterface.register(TILED, sdpa_mask)
