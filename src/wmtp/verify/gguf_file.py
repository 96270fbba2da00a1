"""An exported GGUF file, looked at before an engine is given it."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from wmtp.errors import CheckpointError
from wmtp.export.gguf import Dtype, gguf_library
from wmtp.export.gguf_tensors import choose_architecture, file_tensors, settings
from wmtp.model.heads import HeadsShape
from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import StoredConfig
from wmtp.untrusted import check_ordinary

_DTYPES: dict[str, Dtype] = {
    "ALL_F32": "f32",
    "MOSTLY_F16": "f16",
    "MOSTLY_BF16": "bf16",
    "MOSTLY_Q8_0": "q8_0",
}


@dataclass(frozen=True)
class GgufFile:
    """What a whole and readable file says about its model.

    Attributes:
        dtype: of its matrices.
        numbers: whole numbers, numbers and lists of truth values, by their keys.
        shapes: of its tensors, rows first.
    """

    path: Path
    architecture: str
    dtype: Dtype
    numbers: dict[str, object]
    shapes: dict[str, tuple[int, ...]]

    @property
    def has_heads(self) -> bool:
        """Whether there are heads beyond the trunk's own."""
        return bool(self.numbers.get(f"{self.architecture}.nextn_predict_layers"))


def read_gguf_file(path: Path) -> GgufFile:
    """Read names, numbers and shapes, and see that every tensor is there to its end.

    Raises:
        CheckpointError: it is no GGUF file, is cut off, or holds what wmtp does not write.
        ConfigError: the library ``gguf`` is not installed.
    """
    gguf = gguf_library()
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if start != b"GGUF":
        raise CheckpointError(f"'{path}' is no GGUF file: it does not begin with those letters.")
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items() if _is_small(field)}
        file_type = gguf.LlamaFileType(fields["general.file_type"]).name
        shapes = {
            str(tensor.name): tuple(int(n) for n in reversed(tensor.shape))
            for tensor in reader.tensors
        }
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"'{path}' is cut off or damaged: it is no whole GGUF file. Export it again."
        ) from error
    if file_type not in _DTYPES:
        raise CheckpointError(
            f"'{path}' is stored as {file_type}; only what wmtp export writes is checked: "
            f"{', '.join(_DTYPES.values())}."
        )
    architecture = str(fields.get("general.architecture"))
    return GgufFile(path, architecture, _DTYPES[file_type], fields, shapes)


def check_same_model(file: GgufFile, stored: StoredConfig, directory: Path) -> None:
    """Refuse a file that was not exported from such a model.

    Args:
        stored: what the directory says about its model.
        directory: for messages.

    Raises:
        CheckpointError: names the first thing that differs.
    """
    if stored.kind == "hf":
        raise CheckpointError(
            f"'{file.path}' was not exported from '{directory}', whose trunk transformers runs."
        )
    shape, heads = stored.trunk, stored.heads if file.has_heads else HeadsShape(horizon=1)
    architecture = choose_architecture(shape, heads)
    if file.architecture != architecture:
        raise _other(file, directory, "architecture", file.architecture, architecture)
    for name, ours in settings(architecture, shape, heads.horizon - 1).items():
        theirs = file.numbers.get(f"{architecture}.{name}")
        if not _equal(theirs, ours):
            raise _other(file, directory, name, theirs, ours)
    with torch.device("meta"):  # shapes without memory
        state = MultiTokenModel(LlamaTrunk(shape), heads).state_dict()
    expected = {tensor.name: tensor.shape for tensor in file_tensors(architecture, shape, state)}
    for name in sorted(expected.keys() | file.shapes.keys()):
        if expected.get(name) != file.shapes.get(name):
            there, here = file.shapes.get(name, "absent"), expected.get(name, "absent")
            raise _other(file, directory, name, there, here)


def _is_small(field: object) -> bool:
    data: list[int] = field.data  # type: ignore[attr-defined]  # of gguf.ReaderField
    return len(data) <= 4096  # the vocabulary is not looked at here


def _equal(theirs: object, ours: object) -> bool:
    if isinstance(ours, float):
        return isinstance(theirs, float) and math.isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours


def _other(
    file: GgufFile, directory: Path, what: str, theirs: object, ours: object
) -> CheckpointError:
    return CheckpointError(
        f"'{file.path}' was not exported from '{directory}': {what} is {theirs} in the file, "
        f"{ours} in the directory."
    )
