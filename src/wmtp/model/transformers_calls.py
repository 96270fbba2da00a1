"""Calling ``transformers``: quietly, with one plain line for whatever fails, and running no code.

The settings that keep pickles and foreign code out are here and nowhere else.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging as transformers_logging

from wmtp.errors import CheckpointError, WmtpError
from wmtp.model.stored_tensors import CONFIG_NAME, check_names, count_stored, tensor_files
from wmtp.secrets import without_secrets
from wmtp.untrusted import read_json

ADAPTER_NAME = "adapter_config.json"
LARGEST_SIZE = 1 << 40
"""No key of a config is larger; some families write 1e30 for a length without end as a float."""


def read_network(
    auto_class: Any,
    directory: Path,
    problem: str,
    config: PretrainedConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, set[str]]:
    """Let one of the library's classes read a directory's weights, on the CPU.

    Args:
        auto_class: such as ``AutoModelForCausalLM``.
        directory: with ``config.json`` and safetensors.
        problem: what to call a failure.
        config: what the directory's own config was read as, if it was.
        dtype: of the network's numbers.

    Returns:
        The network, and the names of stored tensors that are none of its own.

    Raises:
        CheckpointError: weights are pickled, absent, torn or of other shapes; none is made up.
    """
    files = tensor_files(directory)  # refuses pickles and torn files in our own words
    check_foreign_directory(directory)
    if config is not None:
        _check_sizes(directory, config, count_stored(files), len(files))
    with quiet_transformers(), told_plainly(problem):
        network, report = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    check_names(directory, report["missing_keys"], ())
    return network, set(report["unexpected_keys"])


def check_foreign_directory(directory: Path) -> None:
    """Refuse what the library would follow out of the directory, or never finish reading.

    An adapter names another model to be fetched and changed; an attention named like a repository
    is code of the hub.

    Raises:
        CheckpointError: names the file and what it asks for.
    """
    if (directory / ADAPTER_NAME).exists():
        raise CheckpointError(
            f"'{directory}' holds {ADAPTER_NAME}, an adapter of another model. Merge the two into "
            "one model first."
        )
    for path in sorted(directory.glob("*.json")):
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
        for key, value in _named_values(content):
            if "implementation" in key and isinstance(value, str) and "/" in value:
                raise CheckpointError(
                    f"{path}: {key} is '{value}', code of the Hugging Face hub, which is never "
                    "run. Remove the key."
                )


def _named_values(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    stack = [content]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            yield from current.items()
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)


def _check_sizes(directory: Path, config: PretrainedConfig, stored: int, tensors: int) -> None:
    """Refuse a config whose network could not come from the tensors, before it is built.

    Raises:
        CheckpointError: names the key.
    """
    path = directory / CONFIG_NAME
    for key, value in _named_values(config.to_dict()):
        if isinstance(value, int) and abs(value) > LARGEST_SIZE:
            raise CheckpointError(f"{path}: {key} is {value}, more than any model has.")
    sizes = config.get_text_config()
    layers, width, vocabulary = sizes.num_hidden_layers, sizes.hidden_size, sizes.vocab_size
    if layers > tensors or width > stored or vocabulary * width > stored:
        raise CheckpointError(
            f"{path}: {layers} layers of width {width} with {vocabulary} token ids cannot come "
            f"from the {tensors} tensors there, of {stored:,} numbers."
        )


@contextmanager
def told_plainly(problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever foreign code raises into one line of ours.

    Raises:
        CheckpointError: something was raised; one of ours passes through.
    """
    try:
        yield
    except (WmtpError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code of an architecture may fail in any way
        raise CheckpointError(f"{problem} ({first_line(error)}). {advice}".rstrip()) from error


def first_line(error: Exception) -> str:
    """What an error says, in one short line."""
    lines = str(error).strip().splitlines()
    said = next((line for line in lines if line.strip()), type(error).__name__)
    return without_secrets(said.strip())[:200].rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep ``transformers`` from telling the user what we check or tell ourselves."""
    logger = logging.getLogger("transformers")
    before, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            transformers_logging.enable_progress_bar()
