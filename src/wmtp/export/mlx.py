"""A model as the directory that ``mlx_lm`` loads: the trunk, which is all that it runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from wmtp.export.folder import DTYPES, DtypeName, check_range, check_target, write_model
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model, stored_form
from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel

_OTHER_NAMES: Final = {
    "n_ctx": ("n_positions",),
    "rope_theta": ("rope_parameters", "rope_theta"),
    "rotary_emb_base": ("rope_parameters", "rope_theta"),
    "rotary_pct": ("rope_parameters", "partial_rotary_factor"),
    "partial_rotary_factor": ("rope_parameters", "partial_rotary_factor"),
}
"""Keys under their old names, which mlx_lm reads, and where transformers 5 keeps the value."""

_TENSOR_NAMES: Final = {
    "gpt2": ("transformer.", ""),
    "gpt_neox": ("lm_head.", "embed_out."),
}
"""How tensors begin in transformers 5, and where mlx_lm looks for them, by model_type."""


def export_mlx(
    model_directory: Path, out: Path, *, dtype: DtypeName = "f32", trunk_only: bool = False
) -> list[str]:
    """Write the trunk for ``mlx_lm``, under its own architecture's name.

    mlx_lm refuses tensors that its code has no place for, so the heads stay behind in any case.

    Args:
        model_directory: any that ``load_model`` reads.
        out: a folder that becomes complete or stays as it is; an earlier export is replaced.
        dtype: of the stored numbers, and of what mlx_lm computes.
        trunk_only: the user knows, and is not told, that the heads are left out.

    Returns:
        What the user should know of it, a line each.

    Raises:
        CheckpointError: the model cannot be read.
        ConfigError: ``out`` holds something else, or the dtype cannot hold the numbers.
        StorageError: the disk refused.
    """
    check_target(out, model_directory)
    found = read_config(model_directory)
    model = load_model(model_directory, trunk_only=True)
    check_range(model, dtype)
    stored = stored_form(model, special_tokens=found.special_tokens, dtype=DTYPES[dtype])
    config = _whole_config(model, stored.config)
    family = str(config["model_type"])
    tensors = {mlx_name(name, family): tensor for name, tensor in stored.tensors.items()}
    facts = {"to": "mlx", "layout": "hf", "dtype": dtype, "trunk_only": True}
    write_model(replace(stored, config=config, tensors=tensors), model_directory, out, facts)
    notes = []
    if found.heads.horizon > 1 and not trunk_only:
        notes.append("mlx_lm runs no extra heads: this is the trunk alone.")
    if found.kind == "hf":
        notes.append(
            f"whether mlx_lm knows model_type '{family}', and computes it as "
            "transformers does, 'wmtp verify-export' tells."
        )
    return notes


def mlx_name(name: str, family: str) -> str:
    """What a tensor of our own directories is called in one that mlx_lm reads.

    Example:
        >>> mlx_name("transformer.wte.weight", "gpt2")
        'wte.weight'
        >>> mlx_name("model.embed_tokens.weight", "llama")
        'model.embed_tokens.weight'
    """
    old, new = _TENSOR_NAMES.get(family, ("", ""))
    return new + name.removeprefix(old) if name.startswith(old) else name


def _whole_config(model: MultiTokenModel, config: dict[str, object]) -> dict[str, object]:
    """Every key with its value: mlx_lm has no defaults for most."""
    whole: dict[str, object] = {}
    if not isinstance(model.trunk, LlamaTrunk):
        from wmtp.model.hf_trunk import HfTrunk  # it imports transformers: seconds

        assert isinstance(model.trunk, HfTrunk)
        whole = json.loads(model.trunk.network.config.to_json_string(use_diff=False))
    whole |= config
    del whole["mtp_config"]
    for name, place in _OTHER_NAMES.items():
        value: object = whole
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if name not in whole and value is not None:
            whole[name] = value
    return whole
