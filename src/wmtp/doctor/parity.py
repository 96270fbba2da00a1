"""Is what a device computes what the CPU computes? One training step, then its operations."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wmtp.doctor.finding import Finding, attempt, judged, not_checked, passed
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
from wmtp.step import Feed, set_in_motion, take_step
from wmtp.trial import TINY, Size, Trial, trial_settings

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
OPERATION_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class OperationRun:
    """A run whose operations are compared, so that all of them together are those audited."""

    trial: Trial
    size: Size = TINY
    checkpointing: bool = False


OPERATION_RUNS = (
    OperationRun("baseline"),
    OperationRun("rho1 weighted", replace(TINY, heads="linear", architecture="gpt2"), True),
    OperationRun("rho1 token_skip", replace(TINY, heads="parallel")),
    OperationRun("critic", replace(TINY, architecture="gpt2")),
)


def parity_findings(folder: Path, audited: frozenset[str]) -> Iterator[Finding]:
    """Compare a training step on every device and precision with the CPU's in float32.

    Args:
        folder: where ``trial.write_data`` wrote; a model of the baseline in it is the reference.
        audited: names of operations that the audit saw; empty if there was none.
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
        compared: set[str] = set()
        for precision in OPERATION_PRECISIONS:
            name = f"operations, {kind} {precision}"
            yield attempt(name, partial(operations_agree, folder, kind, precision, compared))
        if audited:
            yield covered(audited, compared, kind)
    if not beside:
        yield not_checked("device against CPU", "this machine has no device beside its CPU")


def covered(audited: frozenset[str], compared: set[str], kind: str) -> Finding:
    """How many of the audited operations were compared, and which were not."""
    name = f"audited, {kind}"
    left = sorted(audited - compared)
    found = f"{len(audited & compared)} of {len(audited)} audited operations were compared"
    return passed(name, found + (f"; not: {', '.join(left)}" if left else ""))


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


def operations_agree(folder: Path, kind: Kind, precision: Precision, compared: set[str]) -> Finding:
    """Every operation that steps run on the device, one by one, beside the CPU's.

    Args:
        folder: as in ``parity_findings``.
        kind: of the device.
        precision: of the products.
        compared: gets the names of the operations.
    """
    name = f"operations, {kind} {precision}"
    try:
        device = choose_device(kind, precision)
    except DeviceError as error:
        return not_checked(name, str(error))
    comparison = Comparison(device.torch_device)
    model = folder / "baseline" / "final"
    for run in OPERATION_RUNS:
        reference = model if run.trial.startswith("rho1") else None
        if reference is not None and not reference.is_dir():
            continue
        settings = trial_settings(
            folder,
            run.trial,
            size=run.size,
            backend=kind,
            precision=precision,
            reference=reference,
            checkpointing=run.checkpointing,
        )
        with quiet_console() as console, assembled(settings, console.log) as job:
            moving = set_in_motion(job)
            job.model.train()
            with Feed(job, moving.progress) as feed, comparison:
                take_step(job, moving, feed)
                moving.window.close()
    compared |= comparison.compared
    return comparison.finding(name)
