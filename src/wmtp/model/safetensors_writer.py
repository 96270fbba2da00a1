"""A safetensors file written tensor by tensor, so that saving never holds a second model."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

FORMAT_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
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
    header = json.dumps(_header(shapes, dtype), separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            if tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"{name} is {tuple(tensor.shape)}, announced as {tuple(shape)}")
            values = tensor.detach().to(dtype).cpu().contiguous().flatten()
            file.write(values.view(torch.uint8).numpy().data)


def _header(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, object]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    start = 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": FORMAT_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    return header
