from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmtp.checkpoints.training_state import load_state, refuse_pickle, save_state
from wmtp.errors import CheckpointError


def test_everything_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {
        "optimizer.exp_avg": torch.randn(4, 3).t(),
        "step": torch.tensor(3.0),
        "rng": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0),
    }
    values = {"lr": 0.1 + 0.2, "step": 12, "best": None, "name": "한국어", "nested": {"a": [1, 2]}}
    save_state(tmp_path / "training_state", tensors, values)
    found, found_values = load_state(tmp_path / "training_state")
    assert found_values == values
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_values_that_json_cannot_hold_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path / "s", {}, {"loss": float("nan")})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"{"),
        ("state.json", b"[1]"),
        ("state.json", b"[" * 100_000),
        ("state.json", b"\xff\xfe"),
        ("state.safetensors", b""),
        ("state.safetensors", b"\xff" * 64),
        ("state.safetensors", b"\x80\x04\x95pickle......"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    save_state(tmp_path, {"x": torch.zeros(2)}, {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        load_state(tmp_path)


def test_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_state(tmp_path)


@pytest.mark.parametrize("name", ["old.pt", "x/pytorch_model.bin", "a.PTH", "b.ckpt"])
def test_pickles_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is a pickle file.*Resume from a folder"):
        refuse_pickle(Path(name))


def test_folders_are_not_pickles(tmp_path: Path) -> None:
    (tmp_path / "run.pt").mkdir()
    refuse_pickle(tmp_path / "run.pt")
    refuse_pickle(tmp_path / "step-00000100")
