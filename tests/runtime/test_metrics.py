import errno
import os
from pathlib import Path

import pytest

from wmtp.errors import DataError, StorageError
from wmtp.runtime.metrics import MetricsLog, cut_back, read_metrics


def write_steps(path: Path, *steps: int) -> None:
    with MetricsLog(path) as metrics:
        for step in steps:
            metrics.write({"step": step, "loss": step / 2})


def test_rows_are_on_the_disk_as_soon_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.write({"step": 1, "loss": 0.1 + 0.2, "tokens_seen": 64})
        assert path.read_text() == '{"step": 1, "loss": 0.30000000000000004, "tokens_seen": 64}\n'
        metrics.sync()
    assert read_metrics(path) == [{"step": 1, "loss": 0.1 + 0.2, "tokens_seen": 64}]


def test_numbers_that_are_not_finite_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.write({"step": 1, "loss": float("nan"), "mfu": float("inf"), "ce/head_0": 2.5})
    assert path.read_text() == '{"step": 1, "ce/head_0": 2.5}\n'


def test_row_without_a_step_is_a_programmers_mistake(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as metrics, pytest.raises(ValueError, match="needs its step"):
        metrics.write({"loss": 1.0})


def test_rows_after_the_checkpoint_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 10, 20, 20, 30)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 20, 30]
    assert cut_back(path, 20) == 2
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 20]
    assert whole.startswith(path.read_bytes())
    assert cut_back(path, 20) == 0
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    write_steps(path, 30)
    assert path.read_bytes() == whole


def test_nothing_to_cut_is_no_error(tmp_path: Path) -> None:
    assert cut_back(tmp_path / "none", 5) == 0


def test_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match=rf"{path}:2 is not a row"):
        read_metrics(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path / "none")


def test_row_refused_by_the_disk_is_kept_and_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    real_write = os.write
    calls = []

    def fill_up(descriptor: int, content: bytes) -> int:
        calls.append(content)
        if len(calls) == 1:  # as a disk does: part of it, then nothing
            return real_write(descriptor, content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with MetricsLog(path) as metrics:
        metrics.write({"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fill_up)
            with pytest.raises(StorageError, match="No space left"):
                metrics.write({"step": 2})
        assert path.read_text() == '{"step": 1}\n'
        metrics.write({"step": 3})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def full(descriptor: int, content: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_costs_one_warning_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    told: list[str] = []
    with MetricsLog(path, told.append) as metrics:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            metrics.write({"step": 1})
            metrics.write({"step": 2})
            metrics.sync()
        assert path.read_text() == ""
        metrics.write({"step": 3})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            metrics.write({"step": 4})
    again = f"{path} could not be written: No space left on device."
    assert told == [f"{again} Rows are kept and tried again; training goes on."] * 2
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_rows_lost_at_the_end_are_an_error_that_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "metrics.jsonl", list[str]()

    def log_two(error: Exception | None) -> None:
        with MetricsLog(path, told.append) as metrics:
            metrics.write({"step": 1})
            metrics.write({"step": 2})
            if error is not None:
                raise error

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="the last 2 lines of .*metrics.jsonl are lost: No spac"):
        log_two(None)
    with pytest.raises(KeyError, match="another"):
        log_two(KeyError("another"))
    assert "the last 2 lines" in told[-1]
