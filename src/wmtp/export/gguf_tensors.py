"""What llama.cpp calls a model, its settings and its tensors.

llama.cpp has one graph for each architecture. Without heads a trunk is a ``llama`` or a ``qwen3``.
With heads it must be one of the two whose graphs also run sequential heads of a dense model:
``hy_v3`` norms queries and keys and hands on the state after the last norm, ``mimo2`` does neither.
Both were read and run at llama.cpp v0.5.0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.rotary import rotary_frequencies
from wmtp.model.stored_names import layout_name

Architecture = Literal["llama", "qwen3", "hy_v3", "mimo2"]

EXACT_DEPTHS_OF_HY_V3 = 2
"""llama.cpp reads the state for a third draft from the wrong row of the second (v0.5.0)."""

_OF_THE_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
}


@dataclass(frozen=True)
class NamedTensor:
    """A tensor as the file will hold it, made when it is written.

    Attributes:
        shape: rows first, as in torch.
        make: computes it, float32 on the CPU.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def choose_architecture(trunk: LlamaShape, heads: HeadsShape) -> Architecture:
    """The architecture that computes this model exactly.

    Args:
        heads: to be exported; a horizon of 1 for the trunk alone.

    Raises:
        CheckpointError: llama.cpp has none; says what to train otherwise.
    """
    if heads.horizon == 1:
        if trunk.qk_norm and trunk.rope_scaling is not None:
            raise CheckpointError(
                "llama.cpp's qwen3 has no rope_type llama3, so a trunk with both QK-norm and "
                "llama3 scaling cannot be exported to GGUF."
            )
        return "qwen3" if trunk.qk_norm else "llama"
    if heads.kind != "sequential":
        raise CheckpointError(
            f"llama.cpp runs no {heads.kind} heads. Export with --trunk-only, or train with "
            "heads.kind: sequential."
        )
    if trunk.rope_scaling is not None:
        raise CheckpointError(
            "llama.cpp runs heads only beside a trunk whose rope_type is default, and this one's "
            "is llama3. Export with --trunk-only."
        )
    wanted = "post_norm" if trunk.qk_norm else "pre_norm"
    if heads.hidden != wanted and trunk.final_norm_gain:
        raise CheckpointError(
            f"llama.cpp runs heads on a trunk {'with' if trunk.qk_norm else 'without'} QK-norm "
            f"only if they were trained with heads.hidden: {wanted} or model.final_norm_gain: "
            f"false; these are {heads.hidden}. Train so, or export with --trunk-only."
        )
    return "hy_v3" if trunk.qk_norm else "mimo2"


def settings(
    architecture: Architecture, trunk: LlamaShape, depths: int
) -> dict[str, int | float | list[bool]]:
    """The file's numbers, without the architecture in front of their names.

    Whole numbers are unsigned 32-bit, others float32.
    """
    layers = trunk.num_layers + depths
    found: dict[str, int | float | list[bool]] = {
        "block_count": layers,
        "context_length": trunk.max_seq_length,
        "embedding_length": trunk.hidden_size,
        "feed_forward_length": trunk.intermediate_size,
        "attention.head_count": trunk.num_heads,
        "attention.head_count_kv": trunk.num_kv_heads,
        "attention.key_length": trunk.head_dim,
        "attention.value_length": trunk.head_dim,
        "attention.layer_norm_rms_epsilon": float(trunk.norm_eps),
        "rope.dimension_count": trunk.head_dim,
        "rope.freq_base": float(trunk.rope_theta),
        "vocab_size": trunk.vocab_size,
    }
    if depths:
        # both are mixtures of experts elsewhere and ask for a width of experts; there are none
        found["expert_feed_forward_length"] = trunk.intermediate_size
        found["nextn_predict_layers"] = depths
    if architecture == "mimo2":
        # it must have layers that look back over a window: one as wide as the context
        found["attention.sliding_window"] = trunk.max_seq_length
        found["attention.sliding_window_pattern"] = [layer == 0 for layer in range(layers)]
        found["rope.freq_base_swa"] = float(trunk.rope_theta)
    return found


def file_tensors(
    architecture: Architecture, trunk: LlamaShape, state: dict[str, Tensor]
) -> Iterator[NamedTensor]:
    """All tensors under llama.cpp's names, in the order of the model.

    Args:
        state: of a llama model, by the names of its parameters.
    """
    stored = {layout_name(name, trunk.num_layers): tensor for name, tensor in state.items()}
    if trunk.tie_embeddings:
        stored.pop("lm_head.weight", None)
        if architecture == "mimo2":  # all others fall back on the embedding
            stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    for name, tensor in stored.items():
        if architecture == "mimo2" and ".self_attn." in name:
            if name.endswith("q_proj.weight"):
                yield _fused(name, stored)
                continue
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                continue
        yield _plain(architecture, trunk, name, tensor)
    if trunk.rope_scaling is not None:
        yield NamedTensor(
            "rope_freqs.weight", (trunk.head_dim // 2,), lambda: slowdown_of_pairs(trunk)
        )


def file_name(stored_name: str) -> str:
    """Translate a name of the Hugging Face layout.

    Example:
        >>> file_name("model.layers.3.self_attn.o_proj.weight")
        'blk.3.attn_output.weight'
        >>> file_name("model.layers.31.shared_head.norm.weight")
        'blk.31.nextn.shared_head_norm.weight'
    """
    if stored_name in _OF_THE_MODEL:
        return _OF_THE_MODEL[stored_name]
    layer, rest = stored_name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_OF_A_LAYER[rest.removesuffix('.weight')]}.weight"


def pairs_side_by_side(weight_ED: Tensor, head_dim: int) -> Tensor:
    """Reorder rows of a query or key projection from halves to neighbouring pairs.

    llama.cpp's ``llama`` turns rows ``2 i`` and ``2 i + 1`` of a head together where we turn
    ``i`` and ``i + C / 2``; the other three turn them as we do.

    Example:
        >>> pairs_side_by_side(torch.arange(4.0)[:, None], head_dim=4).flatten()
        tensor([0., 2., 1., 3.])
        >>> pairs_side_by_side(torch.arange(6.0)[:, None], head_dim=6).flatten()
        tensor([0., 3., 1., 4., 2., 5.])
    """
    heads_NQPD = weight_ED.view(-1, 2, head_dim // 2, weight_ED.shape[1])
    return heads_NQPD.transpose(1, 2).reshape(weight_ED.shape)


def slowdown_of_pairs(trunk: LlamaShape) -> Tensor:
    """By how much llama.cpp is to divide the angle of each pair, ``[C / 2]``."""
    plain = rotary_frequencies(trunk.head_dim, trunk.rope_theta)
    return plain / rotary_frequencies(trunk.head_dim, trunk.rope_theta, trunk.rope_scaling)


def _plain(architecture: Architecture, trunk: LlamaShape, name: str, tensor: Tensor) -> NamedTensor:
    def make() -> Tensor:
        turned = name.endswith(("q_proj.weight", "k_proj.weight"))
        if architecture == "llama" and turned:
            return pairs_side_by_side(tensor, trunk.head_dim)
        return tensor

    return NamedTensor(file_name(name), tuple(tensor.shape), make)


def _fused(name_of_q: str, stored: dict[str, Tensor]) -> NamedTensor:
    parts = [stored[name_of_q.replace("q_proj", f"{part}_proj")] for part in "qkv"]
    rows = sum(part.shape[0] for part in parts)
    name = file_name(name_of_q).replace("attn_q.", "attn_qkv.")
    return NamedTensor(name, (rows, parts[0].shape[1]), lambda: torch.cat(parts))
