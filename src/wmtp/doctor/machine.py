"""What there is to compute with: device, chip, system, memory, and the numbers it can compute."""

import os
from collections.abc import Iterator
from functools import partial

import torch

from wmtp import __version__
from wmtp.doctor.finding import Finding, attempt, judged, not_checked, passed
from wmtp.errors import DeviceError
from wmtp.runtime.device import (
    ComputeBackend,
    Device,
    Kind,
    Precision,
    available_kinds,
    choose_device,
)
from wmtp.runtime.environment import MPS_VARIABLES
from wmtp.runtime.machine import GIBIBYTE, free_memory_bytes, this_machine

LEAST_FREE_BYTES = GIBIBYTE
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
LARGEST_ERROR = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}
"""Of a product of random matrices of inner size 64, relative to its largest number."""


def machine_findings(backend: ComputeBackend) -> Iterator[Finding]:
    """What this machine is.

    Args:
        backend: what ``devices.compute_backend`` asks for.
    """
    machine = this_machine()
    yield attempt("device found", lambda: device_is_found(backend))
    yield passed("chip", f"{machine.chip}, {machine.cores} cores")
    yield passed("system", f"{machine.system}, Python {machine.python}")
    yield passed("versions", f"wmtp {__version__}, torch {torch.__version__}")
    yield attempt("memory", memory_is_free)
    yield attempt("watermarks", watermarks_are_set)
    for kind in available_kinds():
        for precision in PRECISIONS:
            yield attempt(
                f"numbers, {kind} {precision}",
                partial(products_are_right, kind, precision),
            )


def device_is_found(backend: ComputeBackend) -> Finding:
    """The device that is asked for, or else the best there is."""
    device = choose_device(backend, "fp32")
    kinds = ", ".join(available_kinds())
    return passed("device found", f"{device.name}; this machine has {kinds}")


def memory_is_free() -> Finding:
    """Enough of it for a small run; whether a recipe fits is asked with ``--recipe``."""
    free, total = free_memory_bytes(), this_machine().memory_bytes
    found = f"{free / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f} GiB free"
    device = choose_device("auto", "fp32")
    recommended = device.recommended_memory_bytes()
    if recommended is not None:
        found += f", {recommended / GIBIBYTE:.1f} GiB for {device.kind}"
    return judged("memory", free >= LEAST_FREE_BYTES, found)


def watermarks_are_set() -> Finding:
    """MPS must refuse what does not fit, and must not swap; a CPU or CUDA knows no watermarks."""
    name = "watermarks"
    if "mps" not in available_kinds():
        return not_checked(name, "only MPS has them")
    found = {variable: os.environ.get(variable) for variable in MPS_VARIABLES}
    text = ", ".join(f"{key.removeprefix('PYTORCH_')} {value}" for key, value in found.items())
    high = found["PYTORCH_MPS_HIGH_WATERMARK_RATIO"]
    holds = high is not None and 0 < float(high) <= 1
    return judged(name, holds, text)


def products_are_right(kind: Kind, precision: Precision) -> Finding:
    """A product of matrices in this precision, beside the CPU's in float64."""
    name = f"numbers, {kind} {precision}"
    try:
        device: Device = choose_device(kind, precision)
    except DeviceError as error:
        return not_checked(name, str(error))
    generator = torch.Generator().manual_seed(0)
    a_MK, b_KN = (torch.randn(64, 64, generator=generator) for _ in range(2))
    expected_MN = a_MK.double() @ b_KN.double()
    with device.autocast():
        product_MN = a_MK.to(device.torch_device) @ b_KN.to(device.torch_device)
    if product_MN.dtype != device.compute_dtype:
        return judged(name, False, f"products come out as {product_MN.dtype}")
    off = float((product_MN.cpu().double() - expected_MN).abs().max() / expected_MN.abs().max())
    found = f"a product is off by {off:.1e} (at most {LARGEST_ERROR[precision]:g})"
    return judged(name, off <= LARGEST_ERROR[precision], found)
