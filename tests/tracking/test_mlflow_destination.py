"""MLflow over the network: servers that answer well, badly, or not at all."""

import io
import json
import threading
import time
from pathlib import Path

import pytest
from tests.fake_mlflow import FakeMlflow, free_port, wait_until

from wmtp.runtime.console import Console
from wmtp.runtime.environment import set_environment_before_torch
from wmtp.runtime.metrics import MetricsLog
from wmtp.runtime.run_folder import RunFolder, create_run_folder
from wmtp.tracking import mlflow_destination
from wmtp.tracking import trackers as tracking
from wmtp.tracking.mlflow_destination import MlflowDestination
from wmtp.tracking.trackers import Trackers

LOGIN = "me:hunter2%40home@"


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment_before_torch()
    monkeypatch.setattr(mlflow_destination, "_SERVER_SECONDS", 0.5)
    monkeypatch.setattr(tracking, "_FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "_LONGEST_DELAY_SECONDS", 0.2)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run_folder(tmp_path, "first")


def destination(run: RunFolder, uri: str) -> MlflowDestination:
    return MlflowDestination(
        run, tracking_uri=uri, experiment="toys", settings={"lr": 0.1}, tags={"kind": "test"}
    )


def log(run: RunFolder, trackers: Trackers, *steps: int) -> None:
    with MetricsLog(run.metrics_file) as metrics:
        for step in steps:
            metrics.write({"step": step, "loss": step / 2})
            trackers.wake()


def test_a_run_arrives_whole(run: RunFolder) -> None:
    (run.stage1.root).mkdir()
    with MetricsLog(run.stage1.metrics_file) as metrics:
        metrics.write({"step": 0, "value/auc": 0.75})
    stream = io.StringIO()
    with FakeMlflow() as server:
        for steps in ((1, 2), (3,)):
            with Trackers([destination(run, server.uri())], run, Console(stream=stream)) as all_:
                log(run, all_, *steps)
        assert server.metrics == [
            ("loss", 1, 0.5), ("loss", 2, 1.0), ("loss", 3, 1.5), ("stage1/value/auc", 0, 0.75),
        ]  # fmt: skip
    assert (server.runs, server.name, server.status) == (1, "first", "FINISHED")
    assert (server.parameters, server.tags["kind"]) == ({"lr": "0.1"}, "test")
    assert stream.getvalue() == ""


# a request that is given up may leave its socket to the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
@pytest.mark.parametrize("way", ["trickle", "hang", "401", "other json"])
def test_what_a_bad_server_did_not_take_it_gets_when_it_is_good_again(
    run: RunFolder, way: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # ends a thread that was left behind
    stream = io.StringIO()
    with FakeMlflow(way) as server:
        tracker = destination(run, server.uri(LOGIN))
        with Trackers([tracker], run, Console(stream=stream)) as trackers:
            log(run, trackers, *range(1, 61))
            assert wait_until(lambda: "training goes on without it" in stream.getvalue(), 30)
            threads = [t for t in threading.enumerate() if t.name == "wmtp-request"]
            assert len(threads) <= 1
            server.way = "good"
            assert wait_until(lambda: len(server.metrics) == 60, 30)
        assert server.metrics == [("loss", step, step / 2) for step in range(1, 61)]
    assert "not sent" not in stream.getvalue()
    everything = stream.getvalue() + "".join(capfd.readouterr())
    everything += "".join(path.read_text() for path in run.tracking.iterdir())
    assert "hunter2" not in everything
    assert "bWU6" not in everything  # the login as a request carries it


@pytest.mark.parametrize("way", ["html", "other json"])
@pytest.mark.parametrize("alone", [True, False], ids=["batches alone", "everything"])
def test_a_batch_that_was_answered_but_not_kept_is_sent_again(
    run: RunFolder, way: str, alone: bool
) -> None:
    """MLflow's client takes any answer with 200 for a good one."""
    stream = io.StringIO()
    with (
        FakeMlflow() as server,
        Trackers([destination(run, server.uri())], run, Console(stream=stream)) as trackers,
    ):
        if not alone:
            log(run, trackers, 1)
            assert wait_until(lambda: len(server.metrics) == 1, 30)
        server.batches_way, server.way = way, "good" if alone else way
        log(run, trackers, 2, 3)
        assert wait_until(lambda: "training goes on without it" in stream.getvalue(), 30)
        server.way = server.batches_way = "good"
        assert wait_until(lambda: ("loss", 3, 1.5) in server.metrics, 30)
    assert "not sent" not in stream.getvalue()


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
@pytest.mark.parametrize("way", ["trickle", "hang"])
def test_closing_does_not_wait_for_a_bad_server(run: RunFolder, way: str) -> None:
    stream = io.StringIO()
    with FakeMlflow(way) as server:
        trackers = Trackers([destination(run, server.uri())], run, Console(stream=stream))
        log(run, trackers, 1, 2)
        assert wait_until(lambda: server.requests, 30)  # MLflow is imported by now
        started = time.monotonic()
        assert trackers.close() == 2
        assert time.monotonic() - started < 3
    assert f"2 metrics not sent, kept in {run.metrics_file}; send with: wmtp sync {run.root}" in (
        stream.getvalue()
    )


def test_a_dead_port_is_told_once(run: RunFolder) -> None:
    stream = io.StringIO()
    tracker = destination(run, f"http://{LOGIN}127.0.0.1:{free_port()}")
    with Trackers([tracker], run, Console(stream=stream)) as trackers:
        log(run, trackers, 1)
        assert wait_until(stream.getvalue, 30)
        time.sleep(0.5)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("warning: MLflow: ")
    assert first.endswith("training goes on without it")
    assert "1 metrics not sent" in second
    assert "hunter2" not in stream.getvalue()


def test_a_new_server_that_fails_at_first_still_gets_all_of_it(run: RunFolder) -> None:
    with FakeMlflow() as old, FakeMlflow() as new:
        with Trackers([destination(run, old.uri())], run, Console()) as trackers:
            log(run, trackers, 1)
        new.batches_way = "500"  # after the run was made there
        quiet = Console(stream=io.StringIO())
        with Trackers([destination(run, new.uri())], run, quiet) as trackers:
            log(run, trackers, 2)
        assert (new.runs, new.metrics) == (1, [])
        new.batches_way = "good"
        with Trackers([destination(run, new.uri())], run, Console()) as trackers:
            log(run, trackers, 3)
        assert (new.runs, len(new.metrics)) == (1, 3)


def test_garbage_does_not_make_a_second_run(run: RunFolder) -> None:
    with FakeMlflow() as server:
        for way in ("good", "garbage", "html", "good"):
            server.way = way
            console = Console(stream=io.StringIO())
            with Trackers([destination(run, server.uri())], run, console) as trackers:
                log(run, trackers, 1)
        assert server.runs == 1


def test_a_run_is_found_again_whoever_asks(run: RunFolder) -> None:
    with FakeMlflow() as server:
        for login in ("", LOGIN):
            with Trackers([destination(run, server.uri(login))], run, Console()) as trackers:
                log(run, trackers, 2 if login else 1)
        assert server.runs == 1
        assert server.metrics == [("loss", 1, 0.5), ("loss", 2, 1.0)]
    assert json.loads((run.tracking / "mlflow-run.json").read_text()) == {
        "run_id": server.run_id,
        "tracking_uri": f"http://***@127.0.0.1:{server.port}",
    }
