from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wmtp.safetensors_writer import write_as_they_are, write_one_by_one


def test_tensors_made_while_they_are_written_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    made = (torch.full((2, n), float(n)) for n in (1, 3))
    write_one_by_one(path, {"b": (2, 1), "a": (2, 3)}, made, torch.float32)
    loaded = load_file(path)
    assert loaded["b"].tolist() == [[1.0], [1.0]]
    assert loaded["a"].tolist() == [[3.0] * 3] * 2


def test_a_tensor_of_another_shape_than_announced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"a is \(3,\), announced as \(2,\)"):
        write_one_by_one(path, {"a": (2,)}, [torch.zeros(3)], torch.float32)
    with pytest.raises(ValueError, match="shorter"):
        write_one_by_one(path, {"a": (2,)}, [], torch.float32)


def test_tensors_of_all_dtypes_come_back_as_they_are(tmp_path: Path) -> None:
    """In the order of names, a byte would leave all that follow at odd places."""
    tensors = {
        "a": torch.tensor([1, 255], dtype=torch.uint8)[:1],
        "b": torch.tensor(1.1, dtype=torch.float64),
        "c": torch.tensor([[1.5, 2.5]]).T,  # not contiguous
        "d": torch.tensor([True, False]),
        "e": torch.tensor([-7], dtype=torch.int64),
        "f": torch.zeros(0),
    }
    write_as_they_are(tmp_path / "x.safetensors", tensors)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor), name
