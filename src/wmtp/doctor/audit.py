"""The audit as a check: what a training step would ask of MPS, on any machine."""

from collections.abc import Iterator

from wmtp.doctor.finding import Finding, not_checked


def audit_findings() -> Iterator[Finding]:
    """One finding."""
    yield not_checked("audit", "this installation has no audit")
