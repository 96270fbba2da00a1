"""The audit: training steps on a simulated MPS device, held to every rule."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from wmtp.audit.apart import Failed, Request, simulate_apart
from wmtp.audit.cases import Case, small_cases
from wmtp.audit.kernels import kernels
from wmtp.audit.pretend import PRETENDED, why_not
from wmtp.audit.rules import RULES, Finding, Rule, expected_of, findings
from wmtp.audit.simulate import STEPS
from wmtp.audit.trace import Part, Trace
from wmtp.opening.model import trunk_shape
from wmtp.runtime.device import describe_device

TILED_FROM = 1024
"""Rows of so many tokens and more never have a matrix ``[T, T]`` of attention."""


@dataclass(frozen=True)
class CaseResult:
    """What the audit says of one run.

    Attributes:
        case: its name.
        calls: operations of three steps.
        operations: different ones.
        without_kernel: those that no kernel runs and nobody reviewed.
        peak_bytes: most memory that tensors held.
        peak_by_part: by who held it.
        findings: what rules forbid.
        failed: why the steps could not be taken; None if they were.
    """

    case: str
    calls: int = 0
    operations: tuple[str, ...] = ()
    without_kernel: tuple[str, ...] = ()
    peak_bytes: int = 0
    peak_by_part: dict[Part, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    failed: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the steps were taken and no rule found anything."""
        return self.failed is None and not self.findings

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        return (
            f"{verdict:6} {self.case:62} {self.calls:7,} calls {len(self.operations):4} operations "
            f"{self.peak_bytes / 2**30:7.2f} GiB"
        )


@dataclass(frozen=True)
class AuditResult:
    """What the audit says.

    Attributes:
        torch_version: whose list of kernels was read.
        kernels: operations with a kernel for MPS there.
        rules: names of the rules.
        cases: a result for each run.
        skipped: why nothing was audited; None if something was.
    """

    torch_version: str
    kernels: int
    rules: tuple[str, ...]
    cases: tuple[CaseResult, ...] = ()
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether runs were audited and every one is fine."""
        return bool(self.cases) and all(one.ok for one in self.cases)

    @property
    def operations(self) -> frozenset[str]:
        """Every operation that some run asks for: what a Mac is to be tried with."""
        return frozenset(name for one in self.cases for name in one.operations)

    @property
    def without_kernel(self) -> frozenset[str]:
        """Those that MPS does not have."""
        return frozenset(name for one in self.cases for name in one.without_kernel)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values | {"ok": self.ok, "operations": sorted(self.operations)}

    def lines(self) -> list[str]:
        """The audit for a person."""
        if self.skipped is not None:
            return [f"audit skipped: {self.skipped}"]
        lines = [str(one) for one in self.cases]
        for one in self.cases:
            lines += [f"  {one.case}: {one.failed}"] if one.failed else []
            lines += [f"  {one.case}: {finding}" for finding in one.findings]
        bad = sum(not one.ok for one in self.cases)
        return [
            *lines,
            f"{len(self.cases)} cases, {bad} failed; {len(self.operations)} operations, missing: "
            f"{len(self.without_kernel)} (torch {self.torch_version}, {self.kernels} kernels)",
        ]


def run_audit(
    cases: Iterable[Case] | None = None,
    report: Callable[[CaseResult], None] | None = None,
    *,
    rules: Sequence[Rule] = RULES,
    tiled_from: int = TILED_FROM,
    steps: int = STEPS,
) -> AuditResult:
    """Take three training steps of each case on a simulated MPS device and hold them to the rules.

    Works from an installed package, without a Mac, and allocates nothing for the models.

    Args:
        cases: what to audit; by default a few that have every algorithm, trunk and head.
        report: told each result as it is there.
        rules: what to hold them to.
        tiled_from: see ``rules.expected_of``.
        steps: how many training steps; fewer than three show less of what changes.

    Raises:
        DeviceError: the simulation itself ended early.
    """
    cases = small_cases() if cases is None else tuple(cases)
    names = tuple(rule.__name__.replace("_", " ") for rule in rules)
    known = sum(kernel == "metal" for kernel in kernels().values())
    problem = why_not()
    if problem is not None:
        return AuditResult(torch.__version__, known, names, skipped=problem)
    requests = [
        Request(
            one.settings,
            PRETENDED,
            steps=steps,
            scores_cached=one.scores_cached,
            tiled_attention=one.tiled_attention,
            stage1=one.stage1,
            strict=True,
        )
        for one in cases
    ]
    results = []
    for one, outcome in zip(cases, simulate_apart(requests), strict=True):
        results.append(judge(one, outcome, rules, tiled_from))
        if report is not None:
            report(results[-1])
    return AuditResult(torch.__version__, known, names, tuple(results))


def judge(
    case: Case, outcome: Trace | Failed, rules: Sequence[Rule], tiled_from: int
) -> CaseResult:
    """What the rules say of one case."""
    if isinstance(outcome, Failed):
        return CaseResult(case.name, failed=outcome.message)
    settings = case.settings
    device = describe_device(PRETENDED, settings.config.devices.mixed_precision)
    shape = trunk_shape(settings.recipe, settings.recipe.model.vocab_size or 0)
    expected = expected_of(settings, shape, device, tiled_from=tiled_from, stage1=case.stage1)
    found = findings(outcome, expected, rules)
    runnable = {name for name, kernel in kernels().items() if kernel != "cpu"}
    return CaseResult(
        case=case.name,
        calls=outcome.calls,
        operations=tuple(sorted(outcome.operation_names)),
        without_kernel=tuple(sorted(outcome.operation_names - runnable)),
        peak_bytes=outcome.peak_bytes,
        peak_by_part=outcome.peak_by_part,
        findings=found,
    )
