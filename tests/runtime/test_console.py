import errno
import io
import os
import re
from pathlib import Path

import pytest

from wmtp.errors import DataError
from wmtp.runtime.console import Console, progress_text

ROW = {
    "step": 20,
    "loss": 3.21,
    "ce/head_0": 2.9,
    "ce/head_1": 3.4,
    "tokens_per_second": 1234.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def set_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")


class FakeClock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_plain_lines_off_a_terminal(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Console(tmp_path / "train.log", stream=stream) as console:
        with console.progress(0, 100, clock=clock) as bar:
            bar.advance(10)  # the rate is measured from here: two seconds a step
            clock.seconds = 5.0
            bar.advance(11)
            clock.seconds = 20.0
            bar.update(20, ROW)
        console.warning("the disk is nearly full")
    assert stream.getvalue().splitlines() == [
        "step 20/100  loss 3.210  ce 2.90 3.40  1234 tok/s  eta 0:02:40",
        "warning: the disk is nearly full",
    ]
    log = (tmp_path / "train.log").read_text().splitlines()
    assert len(log) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step 20/100 .*0:02:40", log[0])


def test_long_work_without_figures_says_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Console(stream=stream) as console, console.progress(0, 1000, "document", clock) as bar:
        for done in range(0, 301, 100):
            clock.seconds += 6
            bar.advance(done)
    assert stream.getvalue().splitlines() == [
        "document 100/1000  eta 0:00:54",
        "document 300/1000  eta 0:00:42",
    ]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    set_width(monkeypatch, columns)
    stream, clock = Terminal(), FakeClock()
    with Console(stream=stream) as console, console.progress(0, 100, clock=clock) as bar:
        bar.advance(1)
        clock.seconds = 1.0
        bar.advance(2)
        bar.update(20, ROW)
        console.line("eval/loss 3.1")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if line]
    assert max(len(line) for line in lines) <= columns
    assert any("20/100" in line for line in lines)
    assert "eval/loss 3.1" in lines
    if columns >= 40:
        assert any("loss 3.210" in line and "eta" in line for line in lines)
    if columns >= 80:  # what the text leaves over
        assert any("loss 3.210" in line and "━" in line for line in lines)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    set_width(monkeypatch, 80)
    shown = []
    for setting in ("", "1"):
        monkeypatch.setenv("NO_COLOR", setting)
        stream = Terminal()
        with Console(stream=stream) as console, console.progress(0, 10) as bar:
            bar.update(5, ROW)
            console.warning("mind this")
        shown.append(re.findall(r"\x1b\[[0-9;]*3\d", stream.getvalue()))
    assert shown[0]
    assert not shown[1]


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = Terminal()
    with Console(stream=stream) as console, console.progress(0, 10) as bar:
        bar.update(5, {})
    assert stream.getvalue() == "step 5/10\n"


def test_results_go_to_standard_output_and_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console() as console:
        console.line("before there is a run")
        console.keep_log(tmp_path / "train.log")
        console.result("perplexity 11.97")
    captured = capsys.readouterr()
    assert captured.out == "perplexity 11.97\n"
    assert captured.err == "before there is a run\n"
    assert (tmp_path / "train.log").read_text().endswith("  perplexity 11.97\n")


def test_brackets_are_text_and_long_lines_stay_whole() -> None:
    stream = io.StringIO()
    with Console(stream=stream) as console:
        console.line("[red] list[int] " + "x" * 300)
    assert stream.getvalue() == "[red] list[int] " + "x" * 300 + "\n"


def test_secrets_reach_neither_terminal_nor_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Console(tmp_path / "train.log", stream=stream) as console:
        console.line("tracking at http://me:hunter2@host")
    assert "hunter2" not in stream.getvalue() + (tmp_path / "train.log").read_text()


def test_log_goes_on_after_a_resume(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with Console(tmp_path / "train.log", stream=io.StringIO()) as console:
            console.line(text)
    assert (tmp_path / "train.log").read_text().count("\n") == 2


def test_evaluation_line_shows_its_figures() -> None:
    stream = io.StringIO()
    with Console(stream=stream) as console, console.progress(0, 10) as bar:
        bar.report(5, {"eval/loss": 2.34567, "eval/targets": 12000})
    assert stream.getvalue() == "step 5/10  eval/loss 2.346  eval/targets 12,000\n"


def test_very_narrow_text_keeps_the_place() -> None:
    assert progress_text("step 20/100", ROW, 5.0, width=30) == "step 20/100  loss 3.210"
    assert progress_text("step 20/100", ROW, 5.0, width=12) == "step 20/100"


def test_the_log_tells_why_a_run_ended(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    with pytest.raises(DataError), Console(log, stream=io.StringIO()):
        raise DataError("data source 'x' is empty.")
    assert log.read_text().endswith("  error: data source 'x' is empty.\n")


def test_lines_that_the_disk_refuses_are_kept_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, stream = tmp_path / "train.log", io.StringIO()

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Console(log, stream=stream) as console:
        console.line("one")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            console.line("two")
            console.line("three")
        console.line("four")
    assert [line.split()[-1] for line in log.read_text().splitlines()] == [
        "one", "two", "again.", "three", "four",
    ]  # fmt: skip
    assert stream.getvalue().count("train.log could not be written: No space left on device") == 1
