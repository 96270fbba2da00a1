"""The audit as checks: what training steps ask of Apple's MPS, on any machine."""

from collections.abc import Iterable, Iterator

from wmtp.audit.cases import Case
from wmtp.audit.run import AuditResult, CaseResult, run_audit
from wmtp.doctor.finding import Finding, attempt, judged, not_checked


def audit_findings(
    results: list[AuditResult], cases: Iterable[Case] | None = None
) -> Iterator[Finding]:
    """A finding for each audited run, and one for all operations together.

    Args:
        results: gets what the audit says.
        cases: as in ``run_audit``.
    """

    def audit() -> Finding:
        results.append(run_audit(cases))
        return all_kernels_are_there(results[0])

    summary = attempt("kernels of MPS", audit)
    for result in results:
        for one in result.cases:
            yield case_is_fine(one)
    yield summary


def case_is_fine(one: CaseResult) -> Finding:
    """Three steps were taken, and no rule has anything to say."""
    if one.failed is not None:
        return judged(one.case, False, one.failed)
    if one.findings:
        rest = f", and {len(one.findings) - 1} more" if one.findings[1:] else ""
        return judged(one.case, False, f"{one.findings[0]}{rest}")
    found = f"{one.calls:,} calls, {len(one.operations)} operations"
    return judged(one.case, one.ok, f"{found}, {one.peak_bytes / 2**20:,.0f} MiB at its peak")


def all_kernels_are_there(result: AuditResult) -> Finding:
    """Every operation has a kernel of MPS, or is made of such and was reviewed."""
    name = "kernels of MPS"
    if result.skipped is not None:
        return not_checked(name, result.skipped)
    missing = sorted(result.without_kernel)
    found = (
        f"{len(result.cases)} runs, {len(result.operations)} operations, missing: {len(missing)} "
        f"(torch {result.torch_version}, {result.kernels} kernels)"
    )
    return judged(name, result.ok, found + "".join(f"; {one}" for one in missing[:3]))
