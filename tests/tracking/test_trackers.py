import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from wmtp.errors import ConfigError
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import MetricsLog, Row, cut_back
from wmtp.runtime.run_folder import RunFolder, create_run_folder
from wmtp.tracking import tensorboard_destination
from wmtp.tracking import trackers as tracking
from wmtp.tracking.mlflow_destination import MlflowDestination, flat_parameters
from wmtp.tracking.tensorboard_destination import TensorboardDestination
from wmtp.tracking.trackers import RunStatus, Trackers


class Memory:
    """A tracker that keeps rows, and fails or hangs as told."""

    name = "Memory"
    close_seconds = 10.0

    def __init__(self, *, failures: int = 0, hangs_after: int | None = None) -> None:
        self.rows: list[Row] = []
        self.status: RunStatus | None = None
        self.is_new = True
        self.attempts = 0
        self._failures = failures
        self._hangs_after = hangs_after
        self.let_go = threading.Event()

    def connect(self) -> bool:
        is_new, self.is_new = self.is_new, False
        return is_new

    def send(self, rows: Sequence[Row]) -> None:
        self.attempts += 1
        if self._hangs_after is not None and self.attempts > self._hangs_after:
            self.let_go.wait(20)
        if self.attempts <= self._failures:
            raise RuntimeError("503 from http://me:hunter2@host\n<html>")
        self.rows.extend(rows)

    def close(self, status: RunStatus) -> None:
        self.status = status


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run_folder(tmp_path, "first")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(stream: io.StringIO) -> Console:
    return Console(stream=stream)


def log(run: RunFolder, trackers: Trackers, *steps: int) -> None:
    with MetricsLog(run.metrics_file) as metrics:
        for step in steps:
            metrics.write({"step": step, "loss": step / 2, "mfu": 0.5})
            trackers.wake()


def steps_of(memory: Memory) -> list[int]:
    return [int(row["step"]) for row in memory.rows]


def no_tracker_threads() -> bool:
    """What other tests have given up, a request or a disk that hangs, may still be there."""
    given_up = {"wmtp-request", "wmtp-save", "wmtp-upload"}
    names = {thread.name for thread in threading.enumerate()} - given_up
    return not [name for name in names if name.startswith("wmtp-")]


def test_every_row_is_sent_and_the_thread_ends(run: RunFolder, console: Console) -> None:
    memory = Memory()
    with Trackers([memory], run, console) as trackers:
        log(run, trackers, *range(1, 201))
    assert steps_of(memory) == list(range(1, 201))
    assert memory.status == "FINISHED"
    assert no_tracker_threads()


def test_nothing_runs_before_the_first_row(run: RunFolder, console: Console) -> None:
    memory = Memory()
    with Trackers([memory], run, console):
        assert no_tracker_threads()
    assert memory.is_new
    assert memory.status is None


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_status_says_how_the_block_ended(
    run: RunFolder, console: Console, error: type[BaseException], status: str
) -> None:
    def end_badly() -> None:
        with Trackers([memory], run, console) as trackers:
            log(run, trackers, 1)
            raise error

    memory = Memory()
    with pytest.raises(error):
        end_badly()
    assert memory.status == status


def test_tracker_that_always_fails_stops_nothing_and_says_so_once(
    run: RunFolder, console: Console, stream: io.StringIO
) -> None:
    memory, other = Memory(failures=1000), Memory()
    other.name = "Other"  # type: ignore[misc]
    started = time.monotonic()
    trackers = Trackers([memory, other], run, console)
    log(run, trackers, *range(1, 21))
    assert trackers.close() == 40
    assert time.monotonic() - started < 3
    assert steps_of(other) == list(range(1, 21))
    assert stream.getvalue().splitlines() == [
        "warning: Memory: 503 from http://***@host <html>; training goes on without it",
        f"warning: Memory: 40 metrics not sent, kept in {run.metrics_file}; "
        f"send with: wmtp sync {run.root}",
    ]
    assert no_tracker_threads()


def test_tracker_that_comes_back_gets_everything(
    run: RunFolder, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FIRST_DELAY_SECONDS", 0.01)
    memory = Memory(failures=3)
    with Trackers([memory], run, console) as trackers:
        log(run, trackers, 1, 2, 3)
        deadline = time.monotonic() + 5
        while len(memory.rows) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert steps_of(memory) == [1, 2, 3]


def test_tracker_that_hangs_is_left_behind(
    run: RunFolder, console: Console, stream: io.StringIO
) -> None:
    memory = Memory(hangs_after=0)
    trackers = Trackers([memory], run, console)
    log(run, trackers, 1, 2)
    started = time.monotonic()
    assert trackers.close(timeout_seconds=0.2) == 4
    assert time.monotonic() - started < 1
    assert "4 metrics not sent" in stream.getvalue()
    memory.let_go.set()


def test_unsent_rows_are_sent_by_the_next_session(run: RunFolder, console: Console) -> None:
    down = Memory(failures=1000)
    with Trackers([down], run, console) as trackers:
        log(run, trackers, 1, 2)
    up = Memory()
    up.is_new = False
    with Trackers([up], run, console):
        pass  # not a single new row
    assert steps_of(up) == [1, 2]


def test_rows_that_come_again_after_a_resume_are_not_sent_twice(
    run: RunFolder, console: Console
) -> None:
    memory = Memory()
    with Trackers([memory], run, console) as trackers:
        log(run, trackers, 10, 20, 30)
    cut_back(run.metrics_file, 10)
    with Trackers([memory], run, console) as trackers:
        log(run, trackers, 15, 20, 25, 30, 40)
    assert steps_of(memory) == [10, 20, 30, 30, 40]


def test_tracker_that_lost_the_run_gets_all_of_it(run: RunFolder, console: Console) -> None:
    with Trackers([Memory()], run, console) as trackers:
        log(run, trackers, 1, 2)
    fresh = Memory()
    with Trackers([fresh], run, console) as trackers:
        log(run, trackers, 3)
    assert steps_of(fresh) == [1, 2, 3]


def test_stage1_is_sent_first_and_named_so(run: RunFolder, console: Console) -> None:
    run.stage1.root.mkdir()
    with MetricsLog(run.stage1.metrics_file) as stage1:
        stage1.write({"step": 4, "value/auc": 0.5})
    memory = Memory()
    for steps in ((1,), (2,)):
        with Trackers([memory], run, console) as trackers:
            log(run, trackers, *steps)
    assert memory.rows == [
        {"step": 4, "stage1/value/auc": 0.5},
        {"step": 1, "loss": 0.5, "mfu": 0.5},
        {"step": 2, "loss": 1.0, "mfu": 0.5},
    ]


def test_the_way_a_run_ended_is_kept_for_later(run: RunFolder, console: Console) -> None:
    with Trackers([Memory()], run, console) as trackers:
        trackers.status = "KILLED"
    assert run.status_file.read_text() == "KILLED\n"


def test_failing_tracker_that_hangs_at_the_end_gets_a_short_last_try(
    run: RunFolder, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "_LAST_TRY_SECONDS", 0.2)
    memory = Memory(failures=1, hangs_after=1)
    trackers = Trackers([memory], run, console)
    log(run, trackers, 1)
    deadline = time.monotonic() + 5
    while memory.attempts < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    assert trackers.close(timeout_seconds=10) == 2
    assert time.monotonic() - started < 2
    memory.let_go.set()


def test_unreadable_cursor_means_from_the_start(run: RunFolder, console: Console) -> None:
    log(run, Trackers([], run, console), 1, 2)
    (run.tracking / "memory-cursor.json").write_text('{"rows": "many"')
    memory = Memory()
    memory.is_new = False
    with Trackers([memory], run, console):
        pass
    assert steps_of(memory) == [1, 2]


def test_parameters_are_flat_short_and_without_secrets() -> None:
    settings = {"a": {"b c:d": [1, None]}, "uri": "http://u:p@h", "long": "x" * 9000, "on": True}
    flat = flat_parameters(settings)
    assert flat == {"a.b c_d": "[1, null]", "uri": "http://***@h", "long": "x" * 6000, "on": "True"}


def test_missing_tensorboard_is_told_at_the_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard_destination.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wmtp\[tensorboard\]'"):
        TensorboardDestination(run)


def test_tensorboard_shows_what_was_logged(run: RunFolder, console: Console) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for steps in ((1, 2), (3,)):
        with Trackers([TensorboardDestination(run)], run, console) as trackers:
            log(run, trackers, *steps)
    found = [
        (event.step, value.tag, round(value.simple_value or value.tensor.float_val[0], 3))
        for path in sorted(run.tensorboard.iterdir())
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    expected = [(s, tag, v) for s in (1, 2, 3) for tag, v in (("loss", s / 2), ("mfu", 0.5))]
    assert sorted(found) == sorted(expected)
    assert no_tracker_threads()


MLFLOW_RUN = """
import json, sys, threading
from pathlib import Path
from wmtp.runtime.environment import set_environment_before_torch
set_environment_before_torch()
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import MetricsLog
from wmtp.tracking.mlflow_destination import MlflowDestination
from wmtp.runtime.run_folder import RunFolder
from wmtp.tracking.trackers import Trackers

run = RunFolder(Path(sys.argv[1]))
for session, lr in enumerate((0.1, 0.2)):
    destination = MlflowDestination(
        run, tracking_uri=None, experiment="toys", tags={"kind": "test"},
        settings={"optim": {"lr": lr}, "token": "abc", "wide": {str(i): i for i in range(150)}},
    )
    with Trackers([destination], run, Console()) as trackers:
        assert "mlflow" not in sys.modules or session
        with MetricsLog(run.metrics_file) as metrics:
            for step in (2 * session + 1, 2 * session + 2):
                metrics.write({"step": step, "loss": step / 2, "ce/head_0": 1.0})
                trackers.wake()

from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{run.root.parent}/mlflow.db")
experiment = client.get_experiment_by_name("toys")
runs = client.search_runs([experiment.experiment_id])
found = runs[0]
print(json.dumps({
    "runs": len(runs),
    "name": found.info.run_name,
    "status": found.info.status,
    "lr": found.data.params["optim.lr"],
    "token": found.data.params["token"],
    "parameters": len(found.data.params),
    "resumed": found.data.tags["resumed.optim.lr"],
    "kind": found.data.tags["kind"],
    "loss": [[m.step, m.value] for m in client.get_metric_history(found.info.run_id, "loss")],
    "threads": [t.name for t in threading.enumerate() if t.name != "MainThread"],
    "artifacts": found.info.artifact_uri.startswith(run.root.parent.as_uri()),
}))
"""


@pytest.mark.slow
def test_mlflow_keeps_one_run_over_two_sessions_without_a_warning(run: RunFolder) -> None:
    # every warning is an error but the one that MLflow 3.17 itself causes with SQLAlchemy 2.1
    warnings = ["-W", "error", "-W", "ignore:The ``noload`` loader strategy is deprecated"]
    result = subprocess.run(
        [sys.executable, *warnings, "-c", MLFLOW_RUN, str(run.root)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "runs": 1,
        "name": "first",
        "status": "FINISHED",
        "lr": "0.1",
        "token": "***",
        "parameters": 152,
        "resumed": "0.2",
        "kind": "test",
        "loss": [[1, 0.5], [2, 1.0], [3, 1.5], [4, 2.0]],
        "threads": [],
        "artifacts": True,
    }
    assert MlflowDestination.name == "MLflow"
