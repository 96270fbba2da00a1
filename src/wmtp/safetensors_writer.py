"""A safetensors file written tensor by tensor, so that saving never holds a second model."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
HEADER_ALIGNMENT = 8


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write tensors as ``dtype``, moving one at a time to the CPU.

    The library's own writer wants all tensors of a file in CPU memory at once, which on a machine
    with shared memory is a second copy of the model.

    Args:
        path: file to write.
        tensors: names and tensors, on any device, in the order of the file.
        dtype: float32, bfloat16 or float16.

    Raises:
        OSError: the file cannot be written.

    Source:
        https://github.com/huggingface/safetensors, "Format".
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_one_by_one(path, shapes, tensors.values(), dtype)


def write_as_they_are(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any dtypes, each as it is, moving one at a time to the CPU.

    The widest dtypes come first, so that every tensor begins at a multiple of its numbers' size.

    Args:
        path: file to write.
        tensors: names and tensors, on any device.

    Raises:
        OSError: the file cannot be written.
        KeyError: a dtype is not one of ``FORMAT_NAMES``.
    """
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # stable
    ordered = {name: tensors[name] for name in names}
    announced = {name: (tensor.dtype, tensor.shape) for name, tensor in ordered.items()}
    _write(path, announced, ordered.values())


def write_one_by_one(
    path: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[Tensor], dtype: torch.dtype
) -> None:
    """``write_safetensors`` of tensors that are made while they are written.

    Args:
        path: file to write.
        shapes: names and shapes, in the order of the file.
        tensors: one for each name, in that order.
        dtype: float32, bfloat16 or float16.

    Raises:
        OSError: the file cannot be written.
        ValueError: a tensor has not the shape that was announced, or one is missing or too many.
    """
    announced = {name: (dtype, shape) for name, shape in shapes.items()}
    _write(path, announced, tensors)


_Announced = Mapping[str, tuple[torch.dtype, Sequence[int]]]


def _write(path: Path, announced: _Announced, tensors: Iterable[Tensor]) -> None:
    header = json.dumps(_header(announced), separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for (name, (dtype, shape)), tensor in zip(announced.items(), tensors, strict=True):
            if tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"{name} is {tuple(tensor.shape)}, announced as {tuple(shape)}")
            values = tensor.detach().to(dtype).cpu().contiguous().flatten()
            file.write(values.view(torch.uint8).numpy().data)


def _header(announced: _Announced) -> dict[str, object]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    start = 0
    for name, (dtype, shape) in announced.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": FORMAT_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    return header
