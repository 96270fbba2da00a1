"""What a model directory says about its model, whoever wrote it and whoever is to run it."""

from pathlib import Path

from wmtp.errors import CheckpointError
from wmtp.model.llama_config import FAMILY_DEFAULTS, read_llama_config
from wmtp.model.meta_layout import is_meta_directory, read_meta_shapes
from wmtp.model.stored_config import (
    SpecialTokens,
    StoredConfig,
    TrunkKind,
    read_json,
    stored_section,
)
from wmtp.model.stored_tensors import CONFIG_NAME


def is_model_directory(directory: Path) -> bool:
    """Whether a directory says what model it holds."""
    return (directory / CONFIG_NAME).is_file() or is_meta_directory(directory)


def read_config(directory: Path, kind: TrunkKind | None = None) -> StoredConfig:
    """Read what a model directory says about its model, and check that a trunk computes it.

    Code that a directory brings along (``auto_map``) is never looked at.

    Args:
        directory: with ``config.json``, or with Meta's ``params.json``.
        kind: whose code is to run the trunk; None takes our own where it can.

    Raises:
        CheckpointError: there is no such directory or config, or it asks for something that the
            trunk does not do; the message names the key.
    """
    if is_meta_directory(directory):
        trunk, heads = read_meta_shapes(directory)
        return StoredConfig(trunk, heads, SpecialTokens(1, (2,)), layout="meta")
    path = directory / CONFIG_NAME
    found = read_json(directory, path)
    family = str(found.get("model_type"))
    ours = found.get("mtp_config")
    foreign = isinstance(ours, dict) and ours.get("trunk") == "hf"
    if kind == "hf" or foreign or (kind is None and family not in FAMILY_DEFAULTS):
        if foreign and kind == "llama":
            raise CheckpointError(f"{path}: the heads were trained beside model.kind: hf. Set it.")
        if isinstance(ours, dict) and not foreign and ours.get("horizon") != 1:
            raise CheckpointError(
                f"{path}: the heads were trained beside model.kind: llama. Set it."
            )
        from wmtp.model.hf_trunk_directory import read_hf_trunk_config  # transformers: seconds

        return read_hf_trunk_config(directory, stored_section(path, found))
    if family not in FAMILY_DEFAULTS:
        raise CheckpointError(
            f"{path}: model_type is '{family}', which the llama trunk cannot load. It reads "
            f"{', '.join(FAMILY_DEFAULTS)}; other models need model.kind: hf."
        )
    return read_llama_config(path, family, found)
