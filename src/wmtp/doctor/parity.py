"""Is what a device computes what the CPU computes? One training step, then its operations."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from wmtp.doctor.finding import Finding, attempt, judged, not_checked
from wmtp.doctor.first_step import (
    LARGEST_DIFFERENCE,
    SMALLEST_COSINE,
    FirstStep,
    agreement,
    take_first_step,
)
from wmtp.doctor.operations import Comparison
from wmtp.doctor.training import quiet_console
from wmtp.errors import DeviceError
from wmtp.job import assembled
from wmtp.runtime.device import Kind, Precision, available_kinds, choose_device
from wmtp.trial import trial_settings

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def parity_findings(folder: Path) -> Iterator[Finding]:
    """Compare a training step on every device and precision with the CPU's in float32.

    Args:
        folder: where ``trial.write_data`` wrote.
    """
    kinds = available_kinds()
    reference = first_step_on(folder, "cpu", "fp32")
    for kind in reversed(kinds):
        for precision in PRECISIONS:
            if (kind, precision) != ("cpu", "fp32"):
                name = f"step, {kind} {precision}"
                yield attempt(name, partial(step_agrees, folder, reference, kind, precision))
    beside = [kind for kind in kinds if kind != "cpu"]
    for kind in beside:
        for precision in PRECISIONS:
            name = f"operations, {kind} {precision}"
            yield attempt(name, partial(operations_agree, folder, kind, precision))
    if not beside:
        yield not_checked("device against CPU", "this machine has no device beside its CPU")


def first_step_on(folder: Path, kind: Kind, precision: Precision) -> FirstStep:
    """The small model's first step: the same numbers and rows wherever it is taken."""
    settings = trial_settings(folder, backend=kind, precision=precision)
    with quiet_console() as console, assembled(settings, console.log) as job:
        return take_first_step(job)


def step_agrees(folder: Path, reference: FirstStep, kind: Kind, precision: Precision) -> Finding:
    """Loss and gradients are near enough to the CPU's in float32."""
    name = f"step, {kind} {precision}"
    try:
        found = first_step_on(folder, kind, precision)
    except DeviceError as error:
        return not_checked(name, str(error))
    difference, cosine = agreement(reference, found)
    holds = (
        difference <= LARGEST_DIFFERENCE[precision]
        and cosine > SMALLEST_COSINE[precision]
        and not found.not_finite
    )
    return judged(
        name,
        holds,
        f"loss off by {difference:.1e} (at most {LARGEST_DIFFERENCE[precision]:g}), cosine of the "
        f"gradients {cosine:.6f} (above {SMALLEST_COSINE[precision]:g}), against cpu fp32",
    )


def operations_agree(folder: Path, kind: Kind, precision: Precision) -> Finding:
    """Every operation that the step runs on the device, one by one, beside the CPU's."""
    name = f"operations, {kind} {precision}"
    try:
        device = choose_device(kind, precision)
    except DeviceError as error:
        return not_checked(name, str(error))
    settings = trial_settings(folder, backend=kind, precision=precision)
    comparison = Comparison(device.torch_device)
    with quiet_console() as console, assembled(settings, console.log) as job, comparison:
        take_first_step(job)
    return comparison.finding(name)
