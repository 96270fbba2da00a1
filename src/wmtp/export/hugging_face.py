"""A model as the directory that ``transformers`` and engines built on it load."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from wmtp.errors import ConfigError
from wmtp.export.folder import DTYPES, DtypeName, check_range, check_target, write_model
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model, stored_form
from wmtp.model.llama_config import MTP_LLAMA
from wmtp.model.stored_config import StoredConfig

Layout = Literal["hf", "mtp_llama"]
"""How tensors are named: as ``transformers`` has them, or as Fast-LLM's ``mtp_llama``."""


def export_hugging_face(
    model_directory: Path,
    out: Path,
    *,
    dtype: DtypeName = "f32",
    trunk_only: bool = False,
    layout: Layout = "hf",
) -> list[str]:
    """Write a model directory for other engines, with the heads unless they are to be left out.

    Args:
        model_directory: any that ``load_model`` reads, Meta's too.
        out: a folder that becomes complete or stays as it is; an earlier export is replaced.
        dtype: of the stored numbers.
        trunk_only: leave out the heads and our section of the config: an ordinary model.
        layout: ``mtp_llama`` for parallel heads on a Llama.

    Returns:
        What the user should know of it, a line each.

    Raises:
        CheckpointError: the model cannot be read.
        ConfigError: ``out`` holds something else, or the model does not go into the layout or the
            dtype.
        StorageError: the disk refused.
    """
    check_target(out, model_directory)
    found = read_config(model_directory)
    _check_layout(found, layout, trunk_only)
    model = load_model(model_directory, trunk_only=trunk_only)
    check_range(model, dtype)
    stored = stored_form(
        model, special_tokens=found.special_tokens, dtype=DTYPES[dtype], layout=layout
    )
    if trunk_only:
        ordinary = {key: value for key, value in stored.config.items() if key != "mtp_config"}
        stored = replace(stored, config=ordinary)
    facts = {"to": "hf", "layout": layout, "dtype": dtype, "trunk_only": trunk_only}
    write_model(stored, model_directory, out, facts)
    return _notes(found, layout, trunk_only)


def _check_layout(found: StoredConfig, layout: Layout, trunk_only: bool) -> None:
    if layout != MTP_LLAMA:
        return
    if trunk_only or found.heads.horizon == 1:
        raise ConfigError("--layout mtp_llama is for heads, and there are none. Leave it out.")
    if found.kind != "llama" or found.trunk.qk_norm or found.heads.kind != "parallel":
        raise ConfigError(
            "--layout mtp_llama is for parallel heads on a llama trunk without QK-norm; this model "
            f"has {found.heads.kind} heads on "
            f"{'a trunk with QK-norm' if found.trunk.qk_norm else f'a {found.kind} trunk'}. "
            "Leave it out."
        )


def _notes(found: StoredConfig, layout: Layout, trunk_only: bool) -> list[str]:
    heads = found.heads
    if trunk_only or heads.horizon == 1:
        return []
    if layout == MTP_LLAMA:
        return ["mtp_llama is read by wmtp and by Fast-LLM's code, not by transformers itself."]
    if heads.kind != "sequential" or found.kind != "llama":
        return [
            f"{heads.kind} heads on a {found.kind} trunk are decoded by wmtp alone: engines load "
            "the trunk and mention the heads' tensors as unexpected. --trunk-only leaves them out."
        ]
    notes = []
    if heads.hidden == "pre_norm" and found.trunk.final_norm_gain:
        notes.append(
            "these heads were trained on the state before the last norm, and transformers and vLLM "
            "feed them the one after it: texts stay right, but few drafts will be accepted."
        )
    if heads.context == "trunk":
        notes.append(
            "these heads were trained in the context of llama.cpp (heads.context: trunk); "
            "transformers and vLLM draft in a chained one: texts stay right, but fewer drafts will "
            "be accepted beyond the first depth."
        )
    return notes
