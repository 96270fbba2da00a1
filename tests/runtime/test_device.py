import importlib.util
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from wmtp.errors import CheckpointError, DeviceError
from wmtp.runtime import device as device_module
from wmtp.runtime.device import Device, choose_device, named_peak_flops
from wmtp.runtime.processor import multiplies_bf16


@pytest.fixture
def cpu() -> Device:
    return choose_device("cpu", "fp32")


def pretend(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    monkeypatch.setattr(device_module, "available_kinds", lambda: kinds)


def test_missing_device_is_named_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda", "fp32")
    assert str(caught.value) == (
        "device is 'cuda', but this machine has only mps, cpu. Set devices.compute_backend: auto."
    )


def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    device = choose_device("auto", "fp32")
    assert (device.kind, device.exact_counts, device.pin_memory) == ("mps", False, False)
    assert device.shape_parts == 4  # each new shape costs a graph there
    pretend(monkeypatch, "cuda", "mps", "cpu")
    assert choose_device("auto", "fp32").loss_workspace_bytes == 512 * 1024**2


@pytest.mark.parametrize("found", [None, object()], ids=["without Triton", "with Triton"])
def test_loss_takes_16_bit_products_and_the_kernel_on_cuda(
    monkeypatch: pytest.MonkeyPatch, found: object
) -> None:
    monkeypatch.setattr(device_module, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    pretend(monkeypatch, "cuda", "cpu")
    cuda, cpu = choose_device("cuda", "bf16"), choose_device("cpu", "bf16")
    assert (cuda.loss_product_dtype, cuda.loss_kernel) == (torch.bfloat16, found is not None)
    assert (cpu.loss_product_dtype, cpu.loss_kernel) == (None, False)


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "avx512_f": True}, False),
        ({"bf16": True}, True),  # Arm
        ({"cpu_name": "bf16"}, False),
    ],
    ids=str,
)
def test_loss_takes_16_bit_products_on_a_cpu_that_has_them(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert multiplies_bf16() is native
    assert choose_device("cpu", "bf16").loss_product_dtype == (torch.bfloat16 if native else None)
    assert choose_device("cpu", "fp32").loss_product_dtype is None  # what was asked for


def test_a_torch_that_cannot_tell_gives_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_device("cpu", "bf16").loss_product_dtype is None


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="bf16 or fp32"):
        choose_device("cpu", "fp16")


def test_bf16_on_an_old_macos_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    with pytest.raises(DeviceError, match="macOS 14"):
        choose_device("auto", "bf16")


def test_autocast_computes_in_the_asked_precision(cpu: Device) -> None:
    a = torch.ones(2, 2)
    with cpu.autocast():
        assert (a @ a).dtype == torch.float32
    with choose_device("cpu", "bf16").autocast():
        assert (a @ a).dtype == torch.bfloat16


def test_scaler_scales_for_fp16_alone(cpu: Device) -> None:
    assert not cpu.grad_scaler().is_enabled()
    assert not choose_device("cpu", "bf16").grad_scaler().is_enabled()


def test_fused_adamw_exists_where_it_is_claimed(cpu: Device) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    torch.optim.AdamW([parameter], fused=cpu.fused_adamw).step()
    assert cpu.fused_adamw
    assert (parameter < 1).all()


def test_every_generator_goes_on_where_it_was(cpu: Device) -> None:
    def draw() -> tuple[list[float], float, float, float]:
        numbers = (random.random(), np.random.standard_normal(), random.gauss(0, 1))
        return (torch.rand(3).tolist(), *numbers)

    before = cpu.rng_state()
    try:
        cpu.seed(7)
        draw()  # leaves half of a pair of Gaussian numbers in both libraries
        state = cpu.rng_state()
        expected = [draw(), draw()]
        cpu.seed(8)
        cpu.set_rng_state(state)
        assert [draw(), draw()] == expected
        assert {tensor.dtype for tensor in state.values()} == {torch.uint8}
    finally:
        cpu.set_rng_state(before)


@pytest.mark.parametrize("name", ["torch", "python", "numpy"])
def test_unusable_rng_state_is_refused(cpu: Device, name: str) -> None:
    before = cpu.rng_state()
    with pytest.raises(CheckpointError, match="random number state"):
        cpu.set_rng_state({**before, name: before[name][:40]})
    with pytest.raises(CheckpointError, match="random number state"):
        cpu.set_rng_state({key: state for key, state in before.items() if key != name})
    cpu.set_rng_state(before)


def test_peak_memory_sees_what_was_freed_again() -> None:
    """In a process of its own: in this one the allocator may hold freed memory to give out."""
    code = """
import torch
from wmtp.runtime.device import choose_device
cpu = choose_device("cpu", "fp32")
cpu.reset_peak_memory()
before = cpu.peak_memory_bytes()
torch.ones(64 * 1024**2 // 4)
print(cpu.peak_memory_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 40 * 1024**2


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_chips_are_told_apart(name: str, flops: float | None) -> None:
    assert named_peak_flops(name) == flops


def test_cpu_has_no_known_peak(cpu: Device) -> None:
    assert cpu.peak_flops() is None
    cpu.synchronize()
    assert "cpu" in cpu.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_methods_work() -> None:
    cuda = choose_device("cuda", "bf16")
    cuda.reset_peak_memory()
    torch.ones(1024, device=cuda.torch_device)
    cuda.synchronize()
    assert cuda.peak_memory_bytes() >= 4096
    state = cuda.rng_state()
    expected = torch.rand(3, device="cuda")
    cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert choose_device("cuda", "fp16").grad_scaler().is_enabled()


def test_req6_slices_of_a_model_are_refused_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    with pytest.raises(DeviceError, match=r"a single process.*fsdp\.enabled: false"):
        choose_device("auto", "fp32").check_training(sliced=True, compiled=False)
    choose_device("cpu", "fp32").check_training(sliced=True, compiled=True)


def test_req6_several_ranks_are_refused_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    with pytest.raises(DeviceError, match="Start without torchrun"):
        choose_device("mps", "fp32").join(0)


def test_req6_bf16_is_refused_below_macos_14(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    versions: list[tuple[int, int]] = []

    def is_newer(*version: int) -> bool:
        versions.append(version)
        return len(versions) > 1

    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", is_newer)
    with pytest.raises(DeviceError, match="needs macOS 14"):
        choose_device("mps", "bf16")
    assert choose_device("mps", "bf16").compute_dtype == torch.bfloat16
    assert versions == [(14, 0)] * 2


def test_compiled_graphs_in_16_bits_are_refused_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", "cpu")
    with pytest.raises(DeviceError, match="use_torch_compile: false, or mixed_precision: fp32"):
        choose_device("mps", "fp16").check_training(sliced=False, compiled=True)
    choose_device("mps", "fp32").check_training(sliced=False, compiled=True)


def test_req4_attention_is_tiled_where_the_fused_kernel_spares_no_memory(
    monkeypatch: pytest.MonkeyPatch, cpu: Device
) -> None:
    pretend(monkeypatch, "mps", "cpu")
    assert choose_device("mps", "fp32").tiled_attention
    assert not cpu.tiled_attention


def test_req7_pressure_is_what_the_driver_holds_of_what_is_recommended(
    monkeypatch: pytest.MonkeyPatch, cpu: Device
) -> None:
    pretend(monkeypatch, "mps", "cpu")
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 9 * 2**30)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * 2**30)
    assert choose_device("mps", "fp32").memory_pressure() == 0.75
    assert cpu.memory_pressure() is None


def test_a_run_that_takes_half_of_the_memory_gives_back_what_it_frees(
    monkeypatch: pytest.MonkeyPatch, cpu: Device
) -> None:
    asked = list[bool]()
    monkeypatch.setattr(device_module, "give_freed_memory_back", lambda: not asked.append(True))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000))
    assert not cpu.save_memory_if_short_for(2000)
    assert not asked
    assert cpu.save_memory_if_short_for(2001)
    assert asked
    pretend(monkeypatch, "mps", "cpu")
    assert not choose_device("mps", "fp32").save_memory_if_short_for(2001)
