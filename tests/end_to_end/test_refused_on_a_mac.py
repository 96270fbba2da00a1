"""What Apple's chips cannot do is refused before a model or its data is touched."""

from typing import Any

import pytest
import torch

from wmtp import job as job_module
from wmtp.distributed import ranks as ranks_module
from wmtp.errors import ConfigError, DataError, DeviceError
from wmtp.runtime import device as device_module

from .conftest import World


@pytest.fixture
def mac(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose machine says that it has MPS, and that must not come as far as a model."""

    def open_model(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(device_module, "available_kinds", lambda: ("mps", "cpu"))
    monkeypatch.setattr(job_module, "open_model", open_model)
    world.config["devices"] = {"compute_backend": "mps"}
    return world


def test_req6_fsdp(mac: World) -> None:
    mac.config["devices"]["fsdp"] = {"enabled": True}
    with pytest.raises(DeviceError, match=r"mps, which trains in a single process"):
        mac.train("run")
    assert not mac.runs.exists()


def test_req6_more_than_one_process(mac: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert ranks_module.launched_ranks()[1] == 2
    with pytest.raises(DeviceError, match="Start without torchrun, or set compute_backend: cpu"):
        mac.train("run")
    assert not mac.runs.exists()


def test_req6_bf16_below_macos_14(mac: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    mac.config["devices"]["mixed_precision"] = "bf16"
    with pytest.raises(DeviceError, match="macOS 14"):
        mac.train("run")
    assert not mac.runs.exists()


def test_req6_reduce_overhead(mac: World) -> None:
    mac.config["mps_optimizations"] = {"use_graph_mode": True}
    with pytest.raises(ConfigError, match="reduce-overhead"):
        mac.train("run")
    assert not mac.runs.exists()


def test_req6_workers_that_the_data_cannot_be_sent_to(
    mac: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = job_module.open_training_data

    def open_training_data(*given: Any) -> Any:
        rows, reference = real(*given)
        object.__setattr__(rows, "rewards", type("Local", (), {})())
        return rows, reference

    monkeypatch.setattr(job_module, "open_training_data", open_training_data)
    mac.config["devices"]["compute_backend"] = "cpu"
    mac.recipe["data"]["train"]["num_workers"] = 1
    with pytest.raises(DataError, match=r"num_workers: 0"):
        mac.train("run")


def test_what_is_not_refused_does_come_as_far_as_a_model(mac: World) -> None:
    """The control: without one of the above, the model is loaded."""
    mac.config["devices"]["compute_backend"] = "cpu"
    with pytest.raises(AssertionError, match="the model was loaded"):
        mac.train("run")
