"""``config.json`` of a Hugging Face model directory, to and from the shapes of a model.

Llama, Mistral and Qwen3 are one trunk with different switches. What this trunk does not compute
(biases, other activations, sliding windows, other rotary types) is refused by name before any
weight is read. Every other architecture is for ``hf_trunk``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.llama_shape import (
    LARGEST_LENGTH,
    LARGEST_VOCABULARY,
    LARGEST_WIDTH,
    MOST_LAYERS,
    LlamaShape,
)
from wmtp.model.rotary import Llama3Scaling
from wmtp.model.stored_config import (
    MOST_HEADS,
    MtpConfig,
    SpecialTokens,
    StoredConfig,
    at_key,
    mtp_section,
    refuse_quantized,
    special_tokens,
    special_tokens_json,
)

MTP_LLAMA = "mtp_llama"
"""The model_type of a Llama with parallel heads, ``prediction_heads`` in number."""

FAMILY_DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    MTP_LLAMA: {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
}
"""What ``transformers`` takes for keys that a config leaves out, where the families differ."""


class _Rope(BaseModel):
    """``rope_parameters`` (transformers 5) or ``rope_scaling`` (before)."""

    model_config = ConfigDict(extra="allow")

    rope_type: str = Field("default", validation_alias=AliasChoices("rope_type", "type"))
    rope_theta: float | None = None
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


class _ConfigJson(BaseModel):
    """The keys that decide what a Llama-family trunk computes; all others are left alone."""

    vocab_size: int = Field(ge=1, le=LARGEST_VOCABULARY)
    hidden_size: int = Field(ge=1, le=LARGEST_WIDTH)
    intermediate_size: int = Field(ge=1, le=LARGEST_WIDTH)
    num_hidden_layers: int = Field(ge=1, le=MOST_LAYERS)
    num_attention_heads: int = Field(ge=1, le=LARGEST_WIDTH)
    num_key_value_heads: int | None = Field(None, ge=1, le=LARGEST_WIDTH)
    head_dim: int | None = Field(None, ge=1, le=LARGEST_WIDTH)
    max_position_embeddings: int = Field(ge=1, le=LARGEST_LENGTH)
    rms_norm_eps: float = Field(1e-6, ge=0, allow_inf_nan=False)
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    partial_rotary_factor: float = 1.0
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    num_mtp_layers: int | None = None
    num_nextn_predict_layers: int | None = None
    prediction_heads: int | None = Field(None, ge=1, le=MOST_HEADS)
    mtp_config: MtpConfig | None = None


def read_llama_config(path: Path, family: str, found: dict[str, object]) -> StoredConfig:
    """The config of a family that our own trunk computes.

    Args:
        path: of ``config.json``, for messages.
        family: its ``model_type``, one of ``FAMILY_DEFAULTS``.
        found: what it holds.

    Raises:
        CheckpointError: it asks for something that the trunk does not do; names the key.
    """
    config = _validated(path, FAMILY_DEFAULTS[family] | found)
    _refuse_what_is_not_computed(path, family, config)
    heads, final_norm_gain = _stored_heads(path, config, family)
    try:
        trunk = _trunk_shape(path, config, qk_norm=family == "qwen3")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    return StoredConfig(
        trunk=replace(trunk, final_norm_gain=final_norm_gain),
        heads=heads,
        special_tokens=special_tokens(
            config.bos_token_id, config.eos_token_id, config.pad_token_id
        ),
        layout="mtp_llama" if family == MTP_LLAMA else "hf",
    )


def _validated(path: Path, found: dict[str, object]) -> "_ConfigJson":
    try:
        return _ConfigJson.model_validate(found)
    except ValidationError as error:
        raise at_key(path, error) from error


def _refuse_what_is_not_computed(path: Path, family: str, config: _ConfigJson) -> None:
    refuse_quantized(path, config.quantization_config)
    if config.hidden_act != "silu":
        raise CheckpointError(f"{path}: hidden_act is '{config.hidden_act}'; only silu is built.")
    for key, biased in (
        ("attention_bias", config.attention_bias),
        ("mlp_bias", config.mlp_bias),
    ):
        if biased:
            raise CheckpointError(f"{path}: {key} is true; the llama trunk has no biases.")
    slides = family == "mistral" or config.use_sliding_window
    window = config.sliding_window if slides else None
    if window is not None and window < config.max_position_embeddings:
        raise CheckpointError(
            f"{path}: sliding_window is {window}, shorter than max_position_embeddings "
            f"{config.max_position_embeddings}; the llama trunk attends to everything. Lower "
            f"max_position_embeddings to {window} to use the model within its window."
        )
    others = sorted({kind for kind in config.layer_types or () if kind != "full_attention"})
    if others and window is None:
        raise CheckpointError(
            f"{path}: layer_types has {', '.join(others)}; only full_attention is built."
        )


def _trunk_shape(path: Path, config: _ConfigJson, *, qk_norm: bool) -> LlamaShape:
    theta, scaling = _rope(path, config)
    return LlamaShape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        max_seq_length=config.max_position_embeddings,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=config.rms_norm_eps,
        qk_norm=qk_norm,
        tie_embeddings=config.tie_word_embeddings,
    )


def _rope(path: Path, config: _ConfigJson) -> tuple[float, Llama3Scaling | None]:
    # The order of precedence is that of transformers 5.
    rope = config.rope_scaling or config.rope_parameters or _Rope()
    theta = rope.rope_theta or config.rope_theta or 10000.0
    nested = [key for key, value in (rope.model_extra or {}).items() if isinstance(value, dict)]
    if nested:
        raise CheckpointError(
            f"{path}: the rotary parameters differ by layer type ({', '.join(nested)}); the llama "
            "trunk has one set for all layers."
        )
    if rope.partial_rotary_factor != 1 or config.partial_rotary_factor != 1:
        raise CheckpointError(f"{path}: partial_rotary_factor is not 1; whole heads are rotated.")
    if rope.rope_type == "default":
        return theta, None
    if rope.rope_type != "llama3":
        raise CheckpointError(
            f"{path}: rope_type is '{rope.rope_type}'; the llama trunk has default and llama3."
        )
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    if factor is None or low is None or high is None:
        raise CheckpointError(
            f"{path}: rope_type llama3 needs factor, low_freq_factor and high_freq_factor."
        )
    original = rope.original_max_position_embeddings or config.max_position_embeddings
    return theta, Llama3Scaling(factor, low, high, original)


def _stored_heads(path: Path, config: _ConfigJson, family: str) -> tuple[HeadsShape, bool]:
    depths = config.num_mtp_layers or config.num_nextn_predict_layers or 0
    ours = config.mtp_config
    if ours is None and depths:
        raise CheckpointError(
            f"{path}: num_mtp_layers is {depths}, but no mtp_config says which hidden state feeds "
            'them. Add "mtp_config": {"kind": "sequential", "horizon": '
            f'{depths + 1}, "hidden": "post_norm"}} if that is how they were trained.'
        )
    if ours is None:
        if family == MTP_LLAMA:
            return HeadsShape(config.prediction_heads or 1, kind="parallel"), True
        return HeadsShape(horizon=1), True
    found = config.prediction_heads if family == MTP_LLAMA else depths + 1
    if ours.horizon != found and (ours.kind == "sequential" or family == MTP_LLAMA):
        key = "prediction_heads" if family == MTP_LLAMA else "num_mtp_layers"
        what = found if family == MTP_LLAMA else depths
        raise CheckpointError(
            f"{path}: mtp_config.horizon is {ours.horizon}, but {key} is {what}; the horizon is "
            "the number of all heads, one more than the layers after the trunk. Correct "
            "whichever is wrong."
        )
    try:
        heads = HeadsShape(ours.horizon, ours.hidden, ours.head_scale, ours.kind, ours.context)
    except ValueError as error:
        raise CheckpointError(f"{path}: mtp_config: {error}.") from error
    return heads, ours.final_norm_gain


def config_json(
    trunk: LlamaShape, heads: HeadsShape, special_tokens: SpecialTokens, dtype: str
) -> dict[str, object]:
    """Write a model's shapes as ``config.json`` has them; ``read_config`` undoes it.

    A trunk without QK-norm is a Llama, one with it a Qwen3. There is no ``auto_map``: no engine
    needs code from the directory.
    """
    depths = heads.horizon - 1 if heads.kind == "sequential" else 0
    config: dict[str, object] = {
        "architectures": ["Qwen3ForCausalLM" if trunk.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if trunk.qk_norm else "llama",
        "dtype": dtype,
        "vocab_size": trunk.vocab_size,
        "hidden_size": trunk.hidden_size,
        "intermediate_size": trunk.intermediate_size,
        "num_hidden_layers": trunk.num_layers,
        "num_attention_heads": trunk.num_heads,
        "num_key_value_heads": trunk.num_kv_heads,
        "head_dim": trunk.head_dim,
        "max_position_embeddings": trunk.max_seq_length,
        "rms_norm_eps": trunk.norm_eps,
        "tie_word_embeddings": trunk.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **_rope_json(trunk),
        **special_tokens_json(special_tokens),
        "mtp_config": mtp_section(heads) | {"final_norm_gain": trunk.final_norm_gain},
    }
    if depths:
        config |= {"num_mtp_layers": depths, "num_nextn_predict_layers": depths}
    if trunk.qk_norm:
        config |= {
            "use_sliding_window": False,
            "layer_types": ["full_attention"] * trunk.num_layers,
            "mtp_layer_types": ["full_attention"] * depths,
        }
    else:
        config |= {"mlp_bias": False}
    return config


def mtp_llama_json(
    trunk: LlamaShape, heads: HeadsShape, special_tokens: SpecialTokens, dtype: str
) -> dict[str, object]:
    """The same for the layout ``mtp_llama``.

    Source:
        https://github.com/ServiceNow/Fast-LLM, ``fast_llm_external_models/mtp_llama``.
    """
    return config_json(trunk, heads, special_tokens, dtype) | {
        "architectures": ["MTPLlamaForCausalLM"],
        "model_type": MTP_LLAMA,
        "prediction_heads": heads.horizon,
    }


def _rope_json(trunk: LlamaShape) -> dict[str, object]:
    # Once as transformers 5 writes it and once as everything before it reads it.
    if trunk.rope_scaling is None:
        parameters: dict[str, object] = {"rope_type": "default", "rope_theta": trunk.rope_theta}
        return {"rope_parameters": parameters, "rope_theta": trunk.rope_theta}
    scaling: dict[str, object] = {
        "rope_type": "llama3",
        "factor": trunk.rope_scaling.factor,
        "low_freq_factor": trunk.rope_scaling.low_freq_factor,
        "high_freq_factor": trunk.rope_scaling.high_freq_factor,
        "original_max_position_embeddings": trunk.rope_scaling.original_max_seq_length,
    }
    return {
        "rope_parameters": scaling | {"rope_theta": trunk.rope_theta},
        "rope_theta": trunk.rope_theta,
        "rope_scaling": scaling,
    }
