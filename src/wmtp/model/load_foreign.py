"""Reading a trunk of ``transformers`` from its own directory."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from wmtp.errors import CheckpointError
from wmtp.model.hf_config import read_foreign_config
from wmtp.model.hf_trunk import HfTrunk, quiet_transformers
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.stored_tensors import check_names, tensor_files


def load_foreign_trunk(directory: Path, shape: LlamaShape) -> tuple[HfTrunk, set[str]]:
    """Let ``transformers`` read the weights, float32, and try the model on a few tokens.

    Returns:
        The trunk, and the names of stored tensors that are none of its own.

    Raises:
        CheckpointError: weights are pickled, absent, torn or of other shapes, or the architecture
            cannot be a trunk.
    """
    tensor_files(directory)  # refuses pickles and torn files in our own words
    config = read_foreign_config(directory)
    try:
        with quiet_transformers():
            network, report = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"'{directory}' cannot be loaded by transformers: {str(error).splitlines()[0]}"
        ) from error
    check_names(directory, report["missing_keys"], ())
    trunk = HfTrunk(network, shape)
    with quiet_transformers():
        trunk.probe(f"'{directory}'")
    return trunk, set(report["unexpected_keys"])
