"""All that is measured, at toy sizes; the figures are looked at for what they must be anywhere."""

import getpass
import json
import os
import platform
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wmtp.bench import bench, cases
from wmtp.bench.bench import Case, run_bench
from wmtp.bench.cases import TOY, Effort, Place, measure_leak
from wmtp.bench.figures import Figure, LeftOut, Report, comparison, read_report
from wmtp.cli import app
from wmtp.errors import DataError, WmtpError
from wmtp.job import Job
from wmtp.runtime import machine

PLANTED = {"user": "plantedperson", "host": "planted-host", "folder": "planted-folder"}


def in_this_process(case: Case, effort: Effort) -> list[Figure]:
    return case.measure(case.place, effort)


SAMPLE = Report(
    wmtp="0.1.0", torch="2.13.0", python="3.12.1", system="macOS 15.5 (arm64)", chip="Apple M3",
    cores=8, memory_gibibytes=24.0, devices={"mps": "Apple M3 (mps)", "cpu": "Apple M3 (cpu)"},
    figures=[
        Figure(subject="training", device="mps", precision="fp32", value=900.0, unit="tokens/s"),
        Figure(subject="training", device="cpu", precision="fp32", value=300.0, unit="tokens/s"),
        Figure(subject="peak memory", device="mps", precision="fp32", value=3e9, unit="bytes"),
        Figure(subject="predicted peak memory", device="mps", precision="fp32", value=2e9,
               unit="bytes"),
        Figure(subject="growth over 50 steps", device="mps", precision="fp32", value=0.0,
               unit="bytes"),
        Figure(subject="loss, known weights", device="mps", precision="fp32", value=1.04,
               unit="ratio"),
    ],
    left_out=[],
)  # fmt: skip


def measured() -> Report:
    """Everything the CPU has, with planted names of a person, a machine and a folder."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        folder = Path(place) / PLANTED["folder"]
        folder.mkdir()
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, PLANTED["user"])
        patch.setenv("HOME", str(folder))
        patch.setattr(socket, "gethostname", lambda: PLANTED["host"])
        patch.setattr(platform, "node", lambda: PLANTED["host"])
        patch.setattr(platform, "release", lambda: f"6.1.0-{PLANTED['user']}")
        patch.setattr(getpass, "getuser", lambda: PLANTED["user"])
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(bench, "in_own_process", in_this_process)
        return run_bench(lambda _: None, TOY, ["cpu"])


def personal(text: str) -> list[str]:
    """Names that a report may not hold: the planted ones, and this machine's own paths."""
    words = [*PLANTED.values(), str(Path.home()), os.getcwd(), "/tmp/", "/Users/", "/home/"]
    return [word for word in words if word in text]


def test_everything_is_measured_and_nothing_is_said_of_who_did() -> None:
    """One test for both, because measuring takes seconds."""
    report = measured()
    places = {figure.place[:3] for figure in report.figures}
    for precision in ("fp32", "bf16"):
        for subject in ("training", "peak memory", "predicted peak memory"):
            assert (subject, "cpu", precision) in places
    for subject in ("loss, known weights", "loss, rho1 weighted", "loss, rho1 token_skip",
                    "decoding, plain", "decoding, drafts", "growth over 50 steps"):  # fmt: skip
        assert (subject, "cpu", "fp32") in places
    assert all(f.value > 0 for f in report.figures if f.unit in ("tokens/s", "ratio"))
    assert not [one for one in report.left_out if one.why.startswith("failed")], report.left_out
    assert personal(report.text()) == []
    assert report.system.endswith(f"6.1.0 ({platform.machine()})")


def test_a_name_in_a_report_would_be_noticed() -> None:
    spoilt = SAMPLE.model_copy(update={"chip": f"chip of {PLANTED['user']}"})
    assert personal(spoilt.text()) == [PLANTED["user"]]


def test_what_fails_is_named_by_its_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case, effort: Effort) -> list[Figure]:
        raise OSError(f"/home/{PLANTED['user']}/x is not there")

    monkeypatch.setattr(bench, "in_own_process", fail)
    found = run_bench(lambda _: None, TOY, ["cpu"])
    assert found.figures == []
    assert personal(found.text()) == []
    assert LeftOut(what="loss, cpu", why="failed: OSError") in found.left_out


def end_at_once(place: Place, effort: Effort) -> list[Figure]:
    os._exit(7)


def test_a_case_runs_in_a_process_of_its_own_and_may_end_there() -> None:
    """As a driver does that aborts."""
    found = run_one(Case(end_at_once, Place("cpu"), "it"))
    assert found.left_out == [LeftOut(what="it", why="failed: the process ended")]


def run_one(case: Case) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "cases_of", lambda _: [case])
        return run_bench(lambda _: None, TOY, ["cpu"])


def test_memory_that_is_never_freed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    real = cases.take_step

    def leaky(job: Job, moving: Any, feed: Any) -> Any:
        kept.append(bytearray(b"x" * 2**21))
        return real(job, moving, feed)

    monkeypatch.setattr(cases, "take_step", leaky)
    effort = replace(TOY, leak_steps=8)
    (figure,) = measure_leak(Place("cpu"), effort)
    assert figure.value > 6 * 2**21


# reports ------------------------------------------------------------------------------------------


def test_compare_prints_ratios(tmp_path: Path) -> None:
    twice = [figure.model_copy(update={"value": figure.value * 2}) for figure in SAMPLE.figures]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, one in zip(
        paths, (SAMPLE, SAMPLE.model_copy(update={"figures": twice})), strict=True
    ):
        path.write_text(one.text())
    result = CliRunner().invoke(app, ["bench", "--compare", *map(str, paths)])
    assert result.exit_code == 0, result.output
    ratios = [line for line in result.output.splitlines() if "B/A" in line]
    assert len(ratios) == sum(figure.value > 0 for figure in SAMPLE.figures)
    assert all(line.endswith("B/A 2.00") for line in ratios)


def test_reports_without_a_common_figure_say_so() -> None:
    lines = comparison(SAMPLE, SAMPLE.model_copy(update={"figures": []}))
    assert "no figure in common" in lines[-1]


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"cores": "2"}, {"user": "me"}, {"figures": [{"subject": "wages"}]}],
)
def test_what_is_no_report_is_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(json.loads(SAMPLE.text()) | change))
    with pytest.raises(DataError, match="no report of wmtp bench"):
        read_report(path)


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(SAMPLE.text())
    assert read_report(path) == SAMPLE


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    given = ["bench", "--report", "x.json", "--compare", "a.json", "b.json"]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, WmtpError)


def test_lines_say_how_a_device_compares_with_the_cpu_and_memory_with_the_prediction() -> None:
    lines = SAMPLE.lines()
    assert "training, mps fp32 eager over cpu: 3.00" in lines
    assert "peak memory, mps fp32, measured over predicted: 1.50" in lines


def test_the_chip_has_a_name() -> None:
    found = machine.this_machine()
    assert found.chip
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
