"""The tensors of a model directory: where they lie, whether they fit, and their numbers.

Only safetensors are opened: no pickle, ever.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.untrusted import check_tensor_file, read_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
READABLE_DTYPES = frozenset({"F32", "BF16", "F16"})
PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})
NAMES_SHOWN = 4


def tensor_files(directory: Path) -> dict[str, Path]:
    """Say in which file of a model directory each tensor is.

    Raises:
        CheckpointError: the weights are pickled, absent, torn or not where the index says.
    """
    single, index = directory / WEIGHTS_NAME, directory / INDEX_NAME
    if single.is_file():
        return dict.fromkeys(_names_in(single), single)
    if index.is_file():
        return _indexed_files(directory, index)
    pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"'{directory}' has its weights only as {pickled[0]}, a pickle that could run any "
            f"code, so it is not opened. Convert it to {WEIGHTS_NAME} where you trust it."
        )
    raise CheckpointError(f"'{directory}' has neither {WEIGHTS_NAME} nor {INDEX_NAME}.")


def _indexed_files(directory: Path, index: Path) -> dict[str, Path]:
    try:
        weight_map = read_json(index)["weight_map"]
        files = {str(name): directory / str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors shards.") from error
    for path in sorted(set(files.values())):
        if path.parent != directory or path.suffix != ".safetensors" or not path.is_file():
            raise CheckpointError(f"{index} names the shard {path}, which is not beside it.")
        absent = {name for name, shard in files.items() if shard == path} - set(_names_in(path))
        if absent:
            raise CheckpointError(f"{path} lacks {_some(absent)}, which its index promises.")
    return files


def _names_in(path: Path) -> list[str]:
    with open_tensors(path) as file:
        return list(file.keys())


def open_tensors(path: Path) -> Any:
    """Open a file of safetensors, to be used in a ``with``; its header is checked, nothing read.

    Raises:
        CheckpointError: it is none, or not whole.
    """
    try:
        check_tensor_file(path)
        return safe_open(path, framework="pt")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error


def count_stored(files: Mapping[str, Path]) -> int:
    """How many numbers the tensors of a directory have, as their headers say."""
    count = 0
    for path in sorted(set(files.values())):
        with open_tensors(path) as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def check_names(directory: Path, wanted: Iterable[str], found: Iterable[str]) -> None:
    """Hold the names that a model wants against those that a directory has.

    Raises:
        CheckpointError: the two sets differ; the message names the difference.
    """
    wanted, found = set(wanted), set(found)
    for what, names in (("lacks", wanted - found), ("has no place for", found - wanted)):
        if names:
            raise CheckpointError(
                f"'{directory}' {what} {_some(names)}: its weights do not fit its {CONFIG_NAME}."
            )


def shown_shapes(shapes: Mapping[str, list[int]]) -> str:
    """Names and shapes for a message, a few of them."""
    return _some(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - NAMES_SHOWN
    return ", ".join(ordered[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def copy_tensors(files: Mapping[str, Path], wanted: Mapping[str, Tensor]) -> None:
    """Check the headers of all files, then read every tensor, upcast, into its place.

    Args:
        files: in which file each tensor is.
        wanted: where its numbers go.

    Raises:
        CheckpointError: a stored tensor has another shape, or is no floating-point number.
    """
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(open_tensors(path)) for path in sorted(set(files.values()))
        }
        for name, tensor in wanted.items():
            _check_tensor(files[name], name, opened[files[name]].get_slice(name), tensor)
        for name, tensor in wanted.items():
            tensor.copy_(opened[files[name]].get_tensor(name))


def _check_tensor(path: Path, name: str, stored: Any, wanted: Tensor) -> None:
    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if shape != tuple(wanted.shape):
        raise CheckpointError(
            f"{path}: {name} has shape {list(shape)}, but {CONFIG_NAME} makes it "
            f"{list(wanted.shape)}."
        )
    if dtype not in READABLE_DTYPES:
        raise CheckpointError(
            f"{path}: {name} is stored as {dtype}; training needs "
            f"{', '.join(sorted(READABLE_DTYPES))}."
        )
