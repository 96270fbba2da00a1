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
from wmtp.model.stored_tensors import check_names, tensor_files


def read_network(
    auto_class: Any, directory: Path, problem: str, config: PretrainedConfig | None = None
) -> tuple[Any, set[str]]:
    """Let one of the library's classes read a directory's weights, float32 on the CPU.

    Args:
        auto_class: such as ``AutoModelForCausalLM``.
        directory: with ``config.json`` and safetensors.
        problem: what to call a failure.
        config: what the directory's own config was read as, if it was.

    Returns:
        The network, and the names of stored tensors that are none of its own.

    Raises:
        CheckpointError: weights are pickled, absent, torn or of other shapes; none is made up.
    """
    tensor_files(directory)  # refuses pickles and torn files in our own words
    with quiet_transformers(), told_plainly(problem):
        network, report = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    check_names(directory, report["missing_keys"], ())
    return network, set(report["unexpected_keys"])


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
    return said.strip()[:200].rstrip(".")


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
