"""``wmtp doctor``, in order: the machine, the user's files, training, parity, what is left over."""

import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from wmtp.audit.run import AuditResult
from wmtp.config import Settings
from wmtp.doctor.audit import audit_findings
from wmtp.doctor.files import file_findings, kept_in, opening_findings
from wmtp.doctor.finding import Finding, attempt, failure, in_group, not_checked, passed
from wmtp.doctor.leftovers import fallbacks_are_none, semaphores_are_freed, start_run_with_worker
from wmtp.doctor.machine import machine_findings
from wmtp.doctor.memory import memory_is_enough
from wmtp.doctor.parity import parity_findings
from wmtp.doctor.training import training_findings
from wmtp.errors import WmtpError
from wmtp.runtime.device import ComputeBackend, available_kinds
from wmtp.trial import Trial, trial_settings, write_data

FILES = "your files"
"""The group whose failures are the user's to mend."""


@dataclass(frozen=True)
class Request:
    """What is to be looked at.

    Attributes:
        settings: the user's files as they stand; None looks at the machine alone.
        ten_steps: the same, made into ten steps that leave nothing behind.
        tiny: train the small model rather than the user's.
        every_algorithm: train the small model with all four, and audit as well.
        audit_only: nothing but the audit.
        dry_run: stop before training.
    """

    settings: Settings | None = None
    ten_steps: Settings | None = None
    tiny: bool = False
    every_algorithm: bool = False
    audit_only: bool = False
    dry_run: bool = False

    @property
    def backend(self) -> ComputeBackend:
        """The device that the user's config asks for."""
        return "auto" if self.settings is None else self.settings.config.devices.compute_backend


def examine(request: Request, show: Callable[[Finding], None]) -> list[Finding]:
    """Run the checks, showing each as it ends.

    Warnings are counted, and given on when all is done.
    """
    findings = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for finding in findings_of(request, caught):
            show(finding)
            findings.append(finding)
    told = set()
    for warning in caught:
        key = (str(warning.message), warning.filename, warning.lineno)
        if key not in told:
            told.add(key)
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return findings


def findings_of(request: Request, caught: list[warnings.WarningMessage]) -> Iterator[Finding]:
    """All checks, in order."""
    if request.audit_only:
        yield from in_group("audit", audit_findings([]))
        return
    yield from in_group("machine", machine_findings(request.backend))
    if request.settings is not None:
        yield from in_group(FILES, file_findings(request.settings))
    if request.dry_run:
        if request.settings is not None:
            yield from in_group(FILES, opening_findings(request.settings))
        return
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="wmtp-doctor-")))
        write_data(folder)
        trial_settings(folder, backend=request.backend)
        worker = start_run_with_worker(folder / "config.yaml", folder / "recipe.yaml", "worker")
        opened.callback(worker.kill)
        if request.ten_steps is None or request.tiny or request.every_algorithm:
            yield from trials(request, folder)
        else:
            yield from in_group(FILES, own_training(request.ten_steps, opened))
        audited: frozenset[str] = frozenset()
        if request.every_algorithm:
            results: list[AuditResult] = []
            yield from in_group("audit", audit_findings(results))
            audited = frozenset(name for result in results for name in result.operations)
        yield from in_group("device against CPU", parity_findings(folder, audited))
        yield from in_group("left over", leftovers(worker, caught))


def own_training(settings: Settings, opened: ExitStack) -> Iterator[Finding]:
    """Ten steps of the user's recipe, in a folder beside the runs that is removed again."""
    base_path = Path(settings.config.paths.checkpoints.base_path)
    places: list[Path] = []

    def make_place() -> Finding:
        base_path.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(dir=base_path, prefix="doctor-")
        places.append(Path(opened.enter_context(holder)))
        return passed("folder of runs", f"{base_path} can be written to")

    yield attempt("folder of runs", make_place)
    for place in places:
        try:
            kept = kept_in(settings, place)
        except WmtpError as error:
            yield failure("tokenizer", error)
            return
        yield attempt("memory of a run", partial(memory_is_enough, kept))
        yield from training_findings(kept, place)


def trials(request: Request, folder: Path) -> Iterator[Finding]:
    """The small model, with one algorithm or with all four."""
    every: tuple[Trial, ...] = get_args(Trial)
    reference = folder / "baseline" / "final"
    for trial in every if request.every_algorithm else every[:1]:
        group = f"small model, {trial}"
        if trial.startswith("rho1") and not reference.is_dir():
            why = "its reference is the baseline's model, which is not there"
            yield from in_group(group, [not_checked("training", why)])
            continue
        settings = trial_settings(
            folder,
            trial,
            backend=request.backend,
            reference=reference if trial.startswith("rho1") else None,
            mlflow=True,
        )
        yield from in_group(group, training_findings(settings, folder))


def leftovers(
    worker: "subprocess.Popen[str]", caught: list[warnings.WarningMessage]
) -> Iterator[Finding]:
    """What the process has seen by now, and what the worker's run said."""
    messages = [str(warning.message) for warning in caught]
    yield attempt("fallbacks", lambda: fallbacks_are_none(messages, available_kinds()))
    yield attempt("semaphores", lambda: semaphores_are_freed(worker))
