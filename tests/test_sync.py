"""What a tracker missed is sent afterwards; the servers are real, the run is two rows long."""

import io
from pathlib import Path
from typing import Any

import pytest

from tests.fake_mlflow import FakeMlflow, free_port
from wmtp.checkpoints.checkpoint import write_folder
from wmtp.cli import app
from wmtp.config import Config, Run
from wmtp.errors import ConfigError, TrackerError
from wmtp.runtime.console import Console
from wmtp.runtime.environment import set_environment_before_torch
from wmtp.runtime.lock import hold_run_lock
from wmtp.runtime.metrics import MetricsLog
from wmtp.runtime.run_folder import RunFolder, create_run_folder
from wmtp.sync import Tracked, read_tracked, send_final_model, sync

METRICS = [("loss", 1, 3.5), ("loss", 2, 3.25), ("stage1/value/auc", 0, 0.75)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment_before_torch()
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def make_run(base: Path, uri: str, **mlflow: Any) -> tuple[RunFolder, Tracked]:
    """A run that has ended without its tracker."""
    folder = create_run_folder(base, "first")
    config = {"mlflow": {"tracking_uri": uri, **mlflow}}
    recipe = {"run": {"tags": ["toy"]}, "weighting": {"algorithm": "baseline-mtp"}}
    folder.write_settings({"config": config, "recipe": recipe, "max_steps": 2})
    folder.stage1.root.mkdir()
    with MetricsLog(folder.stage1.metrics_file) as stage1:
        stage1.write({"step": 0, "value/auc": 0.75})
    with MetricsLog(folder.metrics_file) as metrics:
        for name, step, value in METRICS[:2]:
            metrics.write({"step": step, name: value})
    write_folder(folder.final, 2, fill_model)
    folder.status_file.write_text("FINISHED\n")
    return folder, Tracked(Config.model_validate(config), Run(), "baseline-mtp", config)


def fill_model(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"weights")


def test_everything_is_sent_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeMlflow() as server:
        folder, _ = make_run(tmp_path, server.uri())
        app(["sync", str(folder.root)], standalone_mode=False)
        app(["sync", str(folder.root)], standalone_mode=False)
        assert server.metrics == METRICS
    assert (server.runs, server.status, server.files) == (1, "FINISHED", {})
    assert server.tags["toy"] == "true"
    assert server.tags["algorithm"] == "baseline-mtp"
    assert server.parameters["max_steps"] == "2"
    assert capsys.readouterr().out == "MLflow: 3 metrics sent\nMLflow: 0 metrics sent\n"


@pytest.mark.parametrize(
    ("said", "status"), [("FAILED\n", "FAILED"), ("KILLED\n", "KILLED"), (None, "KILLED")]
)
def test_the_tracker_is_told_how_the_run_ended(
    tmp_path: Path, said: str | None, status: str
) -> None:
    with FakeMlflow() as server:
        folder, _ = make_run(tmp_path, server.uri())
        folder.status_file.unlink()
        if said is not None:
            folder.status_file.write_text(said)
        sync(folder, None, str)
    assert server.status == status


def test_another_server_gets_all_of_it(tmp_path: Path) -> None:
    with FakeMlflow() as server, FakeMlflow() as other:
        folder, _ = make_run(tmp_path, server.uri(), log_checkpoints="final")
        sync(folder, None, str)
        sync(folder, other.uri(), str)
        assert other.metrics == METRICS
        assert {"final/model.safetensors", "final/manifest.json"} == other.files.keys()


def test_a_tracker_that_is_still_down_is_one_line(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackerError) as raised:
        sync(folder, None, str)
    text = str(raised.value)
    assert raised.value.exit_code == 1
    assert text.startswith("MLflow: ")
    assert text.endswith(f"; 3 metrics not sent, kept in {folder.metrics_file}")
    assert "\n" not in text


def test_the_login_comes_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeMlflow() as server:
        folder, _ = make_run(tmp_path, server.uri("me:hunter2@"))
        assert "hunter2" not in folder.settings_file.read_text()
        with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD, or give --tracking-uri"):
            sync(folder, None, str)
        given = read_tracked(folder, server.uri("me:hunter2@")).config.mlflow.tracking_uri
        assert given == server.uri("me:hunter2@")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
        sync(folder, None, str)
        assert server.metrics == METRICS


def test_a_run_without_trackers_is_refused(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path, "http://127.0.0.1:9", enabled=False)
    with pytest.raises(ConfigError, match="run 'first' has no tracker to send to"):
        sync(folder, None, str)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run folder \(it has no run.yaml\)"):
        app(["sync", str(tmp_path)], standalone_mode=False)
    (tmp_path / "run.yaml").write_text("config: 3\n")
    with pytest.raises(ConfigError, match=r"run.yaml is not the run.yaml of a run"):
        app(["sync", str(tmp_path)], standalone_mode=False)


def test_a_run_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with FakeMlflow() as server:
        folder, _ = make_run(tmp_path, server.uri())
        with (
            hold_run_lock(folder.lock_file, "first"),
            pytest.raises(ConfigError, match="run 'first' is being written by process"),
        ):
            app(["sync", str(folder.root)], standalone_mode=False)
        assert server.requests == 0


def test_the_model_is_stored_when_asked_and_once(tmp_path: Path) -> None:
    stream = io.StringIO()
    with FakeMlflow() as server:
        folder, tracked = make_run(tmp_path, server.uri(), log_checkpoints="final")
        sync(folder, None, str)
        assert server.files["final/model.safetensors"] == b"weights"
        server.files.clear()
        send_final_model(tracked, folder, Console(stream=stream))
        assert server.files == {}  # it is there
        write_folder(folder.final, 3, fill_model)  # the run went on, and made another
        send_final_model(tracked, folder, Console(stream=stream))
        assert server.files["final/model.safetensors"] == b"weights"
    assert stream.getvalue() == ""


def test_a_model_that_is_not_stored_is_one_warning(tmp_path: Path) -> None:
    with FakeMlflow() as server:
        folder, tracked = make_run(tmp_path, server.uri(), log_checkpoints="final")
        stream = io.StringIO()
        send_final_model(tracked, folder, Console(stream=stream))  # its metrics were not sent
        assert server.requests == 0
        later = f"send it with: wmtp sync {folder.root}\n"
        assert stream.getvalue() == f"warning: MLflow: {folder.final} not sent; {later}"
        server.artifacts_way = "403"
        with pytest.raises(TrackerError, match="; 0 metrics not sent"):
            sync(folder, None, str)
        stream = io.StringIO()
        send_final_model(tracked, folder, Console(stream=stream))
        assert stream.getvalue().startswith(f"warning: MLflow: {folder.final} not sent: ")
        assert stream.getvalue().endswith(later)
        assert stream.getvalue().count("\n") == 1
