"""Toys that a whole session shares, and the table at its end."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes.strace import can_trace

from .harness import Outcome, Toy
from .toys import make_scenario


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Toy]:
    """The toy of a name, made when it is first asked for."""
    made: dict[str, Toy] = {}

    def toy(name: str) -> Toy:
        if name not in made:
            made[name] = make_scenario(tmp_path_factory.mktemp(name.replace(" ", "-")), name)
        return made[name]

    return toy


@pytest.fixture(scope="session")
def needs_strace() -> None:
    if not can_trace():
        pytest.skip("strace is not there, or may not attach to processes")


@dataclass
class Totals:
    """One line of the table."""

    cases: int = 0
    kills: int = 0
    inside_saves: int = 0
    worst_lost: int = 0
    worst_ratio: float = 0.0
    failed: int = 0


@pytest.fixture
def note(record_property: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Put what a case has cost into the table: an outcome, and the time it takes undisturbed."""

    def keep(outcome: Outcome | None = None, whole_seconds: float = 0.0) -> None:
        facts = dict(vars(outcome)) if outcome else {}
        record_property("fault", json.dumps(facts | {"whole_seconds": whole_seconds}))

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Figures for ``docs/reliability.md``: a line for each file of tests."""
    totals: dict[str, Totals] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            name = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")
            if "faults/" not in report.nodeid or getattr(report, "when", "call") != "call":
                continue
            line = totals.setdefault(name, Totals())
            line.cases += 1
            line.failed += outcome == "failed"
            for key, text in report.user_properties:
                if key == "fault":
                    add(line, json.loads(text))
    terminalreporter.write_line("")
    terminalreporter.write_line(
        "| group | cases | failed | kills | of them inside a save | worst lost steps "
        "| worst wall ratio |"
    )
    terminalreporter.write_line("|---|---|---|---|---|---|---|")
    for name, line in sorted(totals.items()):
        ratio = f"{line.worst_ratio:.2f}" if line.worst_ratio else ""
        terminalreporter.write_line(
            f"| {name} | {line.cases} | {line.failed} | {line.kills} | {line.inside_saves} "
            f"| {line.worst_lost} | {ratio} |"
        )


def add(line: Totals, facts: dict[str, Any]) -> None:
    line.kills += facts.get("kills", 0)
    line.inside_saves += facts.get("inside_saves", 0)
    line.worst_lost = max(line.worst_lost, facts.get("worst_lost", 0))
    if facts["whole_seconds"]:
        line.worst_ratio = max(line.worst_ratio, facts["seconds"] / facts["whole_seconds"])
