"""Directories of models that ``transformers`` runs: their config, their weights, our section."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.configuration_utils import PretrainedConfig

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_trunk import HfTrunk, hf_shape
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.stored_config import (
    SpecialTokens,
    StoredConfig,
    mtp_section,
    read_json,
    refuse_quantized,
    special_tokens,
    special_tokens_json,
)
from wmtp.model.stored_tensors import CONFIG_NAME
from wmtp.model.transformers_calls import (
    check_foreign_directory,
    first_line,
    quiet_transformers,
    read_network,
)


def read_hf_trunk_config(directory: Path, heads: HeadsShape) -> StoredConfig:
    """What ``transformers`` makes of a directory's config, beside heads already read from it.

    Raises:
        CheckpointError: it knows no such architecture, or its sizes make no trunk.
    """
    config = read_transformers_config(directory)
    return StoredConfig(
        trunk=hf_shape(config, str(directory / CONFIG_NAME)),
        heads=heads,
        special_tokens=special_tokens(
            config.bos_token_id, config.eos_token_id, config.pad_token_id
        ),
        kind="hf",
    )


def read_transformers_config(directory: Path) -> PretrainedConfig:
    """The config as ``transformers`` reads it.

    Raises:
        CheckpointError: it knows no such architecture, or would have to run code to know it, or
            the weights are quantized.
    """
    path = directory / CONFIG_NAME
    found = read_json(directory, path)
    refuse_quantized(path, found.get("quantization_config"))
    check_foreign_directory(directory)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # a config's own class may fail in any way
        family = str(found.get("model_type"))
        if family in CONFIG_MAPPING:
            raise CheckpointError(f"{path} cannot be used: {first_line(error)}.") from error
        raise CheckpointError(
            f"{path}: transformers knows no model_type '{family}' without running code from the "
            "directory, which is never done."
        ) from error
    return cast(PretrainedConfig, config)


def load_hf_trunk(directory: Path, shape: LlamaShape) -> tuple[HfTrunk, set[str]]:
    """Let ``transformers`` read the weights, float32, and try the model on a few tokens.

    Returns:
        The trunk, and the names of stored tensors that are none of its own.

    Raises:
        CheckpointError: weights are pickled, absent, torn or of other shapes, or the architecture
            cannot be a trunk.
    """
    network, unexpected = read_network(
        AutoModelForCausalLM,
        directory,
        f"'{directory}' cannot be loaded by transformers",
        read_transformers_config(directory),
    )
    trunk = HfTrunk(network, shape)
    with quiet_transformers():
        trunk.probe(f"'{directory}'")
    return trunk, unexpected


def hf_trunk_config_json(
    trunk: HfTrunk, heads: HeadsShape, tokens: SpecialTokens, dtype: str
) -> dict[str, object]:
    """Write the architecture's own config as it came, with our section on the heads."""
    config = trunk.network.config
    found: dict[str, object] = json.loads(config.to_json_string(use_diff=True))
    if tokens.pad is None:  # some architectures compute with it
        tokens = replace(tokens, pad=config.pad_token_id)
    return found | {
        "architectures": [type(trunk.network).__name__],
        "dtype": dtype,
        **special_tokens_json(tokens),
        "mtp_config": mtp_section(heads) | {"trunk": "hf"},
    }
