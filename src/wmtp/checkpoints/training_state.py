"""The part of a checkpoint that is not the model: tensors as safetensors, the rest as JSON.

Nothing here, or anywhere else in this project, reads a pickle.
"""

import json
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.safetensors_writer import write_as_they_are
from wmtp.untrusted import check_tensor_file, read_json

TENSORS_FILE: Final = "state.safetensors"
VALUES_FILE: Final = "state.json"

_PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})


def save_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write named tensors and JSON values into ``folder``, which is made.

    Meant to be called by what fills a checkpoint, which sees to fsync and checksums.

    Args:
        folder: usually ``training_state`` inside the checkpoint.
        tensors: any dtype and device; one at a time comes to the CPU.
        values: anything JSON can hold, and finite: floats come back to the last bit.

    Raises:
        ValueError: a value is NaN, infinite or not JSON.
        OSError: the disk refused.
    """
    save_values(folder, values)
    write_as_they_are(folder / TENSORS_FILE, tensors)


def save_values(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the JSON values alone, where ranks write the tensors; raises as ``save_state``."""
    text = json.dumps(dict(values), allow_nan=False, indent=1)
    folder.mkdir(exist_ok=True)
    (folder / VALUES_FILE).write_text(text + "\n")


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_state`` wrote; the tensors are on the CPU.

    Raises:
        CheckpointError: a file is missing or is not what its name says.
    """
    return load_tensors(folder), load_values(folder)


def load_values(folder: Path) -> dict[str, Any]:
    """Read the JSON values.

    Raises:
        CheckpointError: the file is missing or does not hold an object.
    """
    with _told_plainly(folder):
        values = read_json(folder / VALUES_FILE)
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / VALUES_FILE} does not hold a JSON object.")
    return values


def load_tensors(folder: Path, only: Set[str] | None = None) -> dict[str, Tensor]:
    """Read tensors that stand whole in some file of the folder; all of them, or some by name.

    Raises:
        CheckpointError: there is no file, or one is not safetensors.
    """
    with _told_plainly(folder):
        return {
            name: file.get_tensor(name)
            for file in _opened_files(folder)
            for name in file.keys()  # noqa: SIM118  # not a mapping
            if only is None or name in only
        }


def tensor_names(folder: Path) -> set[str]:
    """Names of all tensors, whole or in slices.

    Raises:
        CheckpointError: as ``load_tensors``.
    """
    with _told_plainly(folder):
        return {name for file in _opened_files(folder) for name in file.keys()}  # noqa: SIM118


def _opened_files(folder: Path) -> Iterator[Any]:
    """The folder's files of tensors, one after the other, each open while it is looked at."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} cannot be read: it holds no tensors.")
    for path in files:
        check_tensor_file(path)
        with safe_open(path, framework="pt") as file:
            yield file


@contextmanager
def _told_plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}.") from error


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by what comes after it.

    Example:
        >>> part_of({"head.a": 1, "best.a": 2}, "best.")
        {'a': 2}
    """
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def refuse_pickle(path: Path) -> None:
    """Refuse a ``.pt``, ``.bin`` or other pickle by its name, without opening it.

    Raises:
        CheckpointError: says what to give instead.
    """
    if path.suffix.lower() in _PICKLE_SUFFIXES and not path.is_dir():
        raise CheckpointError(
            f"{path} is a pickle file, which can run any program when it is opened and is never "
            "read. Resume from a folder such as runs/NAME/checkpoints/step-00000100."
        )
