import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from wmtp.checkpoints.training_state import load_tensors, tensor_names
from wmtp.distributed.slices import read_slices, write_slices


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def written(tmp_path: Path, group: dist.ProcessGroup) -> Path:
    tensors = {"optimizer.a": torch.arange(6.0).view(2, 3), "rng.torch": torch.tensor([7, 8])}
    write_slices(tmp_path, tensors, group)
    return tmp_path


def test_what_is_written_is_safetensors_alone_and_comes_back(written: Path) -> None:
    assert {path.suffix for path in written.iterdir()} == {".safetensors"}
    assert tensor_names(written) == {"optimizer.a", "rng.torch"}
    into = torch.zeros(2, 3)
    read_slices(written, {"optimizer.a": into})
    assert into.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert load_tensors(written, only={"rng.torch"})["rng.torch"].tolist() == [7, 8]


def test_a_foreign_pickle_beside_them_is_never_read(written: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (canary,)

    (written / ".metadata").write_bytes(pickle.dumps(Trap()))
    read_slices(written, {"optimizer.a": torch.zeros(2, 3)})
    assert not canary.exists()


def test_what_does_not_fit_is_an_error(written: Path) -> None:
    with pytest.raises((RuntimeError, KeyError)):
        read_slices(written, {"optimizer.b": torch.zeros(2, 3)})
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        read_slices(written, {"optimizer.a": torch.zeros(4, 4)})
