"""Real runs against trackers that misbehave: as fast, as good, and nothing is lost.

Each run is the command in a process of its own, beside one that tracks nothing: at the same time,
so that whatever else the machine does slows both. To see the figures:
``pytest -s tests/faults/test_trackers.py``.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.conftest import World, tokenizer_folder
from tests.fake_mlflow import BAD_WAYS, FakeMlflow, free_port, wait_until
from wmtp.runtime.metrics import Row, read_metrics

__all__ = ["tokenizer_folder"]

LOGIN = "me:hunter2%40home@"
LOGIN_AS_SENT = "bWU6aHVudGVyMkBob21l"
LONGEST_RATIO = 1.5
SECONDS_ENOUGH = 20
"""Of a run: closing may take 15 s at worst, where nothing was known of the tracker before."""


@dataclass
class Ended:
    """A run that has ended."""

    seconds: float
    said: str
    folder: Path

    @property
    def parameters(self) -> bytes:
        return (self.folder / "final/model.safetensors").read_bytes()

    @property
    def rows(self) -> list[Row]:
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def metrics(self) -> list[tuple[str, int, float]]:
        return sorted(
            (name, int(row["step"]), float(value))
            for row in self.rows
            for name, value in row.items()
            if name != "step"
        )


class Program:
    """The command line, in processes of their own."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.world = World(folder)
        (folder / "tokenizer").symlink_to(tokenizer)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.world.config |= {"log_interval": 5}
        self.world.config["paths"]["checkpoints"]["save_interval"] = 1000
        self.world.recipe["train"] |= {"eval_interval": 100}

    def train_beside_untracked(self, name: str, uri: str) -> tuple[Ended, Ended]:
        """A tracked run, and one without a tracker."""
        with ThreadPoolExecutor(2) as threads:
            tracked = threads.submit(self.train, name, uri)
            untracked = threads.submit(self.train, f"{name}-untracked", None)
            return tracked.result(), untracked.result()

    def train(self, name: str, uri: str | None) -> Ended:
        mlflow = {"enabled": False} if uri is None else {
            "tracking_uri": uri, "log_checkpoints": "final",
        }  # fmt: skip
        files = []
        for option, values in (
            ("config", self.world.config | {"mlflow": mlflow}), ("recipe", self.world.recipe),
        ):  # fmt: skip
            path = self.world.folder / f"{name}-{option}.yaml"
            path.write_text(yaml.safe_dump(values))
            files += [f"--{option}", str(path)]
        started = time.monotonic()
        said = self.run(0, "train", *files, "--run-name", name)
        return Ended(time.monotonic() - started, said, self.world.runs / name)

    def sync(self, run: Path, code: int = 0, **environment: str) -> str:
        return self.run(code, "sync", str(run), **environment)

    def run(self, code: int, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "wmtp", *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Program:
    program = Program(tmp_path_factory.mktemp("trackers"), tokenizer_folder)
    for name, steps in (("warm up", 20), ("short", 200)):  # the first fills the disk's caches
        program.world.recipe["train"]["max_steps"] = steps
        short = program.train(name.replace(" ", "-"), None)
    # the time of a process's start is in it, so the run gets somewhat longer than asked for
    program.world.recipe["train"]["max_steps"] = int(200 * SECONDS_ENOUGH / (short.seconds / 2))
    return program


@pytest.fixture
def fake() -> Iterator[FakeMlflow]:
    with FakeMlflow() as server:
        yield server


def name_of(way: str) -> str:
    return way.replace(" ", "-")


def check(case: str, ended: Ended, untracked: Ended, delivered: int) -> None:
    """What holds of every case."""
    ratio = ended.seconds / untracked.seconds
    logged, same = len(ended.rows), ended.parameters == untracked.parameters
    print(
        f"\n{case:18} {ended.seconds:5.1f} s / {untracked.seconds:.1f} s = {ratio:.2f}; rows "
        f"delivered while training {delivered} of {logged}; parameters identical: {same}"
    )
    assert same
    assert ratio <= LONGEST_RATIO
    kept = [path.read_text() for path in ended.folder.rglob("*") if is_text(path)]
    for text in (ended.said, *kept):
        assert "hunter2" not in text
        assert LOGIN_AS_SENT not in text


def is_text(path: Path) -> bool:
    return path.is_file() and path.suffix in ("", ".yaml", ".json", ".jsonl", ".log", ".tmp")


def delivered_rows(server: FakeMlflow) -> int:
    """Rows that came; one of an evaluation may have the step of another."""
    return len({(name.startswith("eval/"), step) for name, step, _ in server.metrics})


def check_sync(program: Program, ended: Ended, server: FakeMlflow) -> None:
    """Everything that was not sent is sent afterwards, once."""
    login = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "hunter2@home"}
    if server.way != "good":
        said = program.sync(ended.folder, code=1, **login)
        assert said.startswith("error: MLflow: ")
        assert len(said.splitlines()) == 1
        assert LOGIN_AS_SENT not in said
        assert "hunter2" not in said
    server.way = "good"
    assert "give --tracking-uri" in program.sync(ended.folder, code=2)
    said = program.sync(ended.folder, **login)
    count = len(ended.metrics)
    assert said == f"MLflow: {count} metrics sent, and {ended.folder.resolve() / 'final'}\n"
    assert server.metrics == ended.metrics
    assert server.status == "FINISHED"
    assert server.files["final/model.safetensors"] == ended.parameters
    assert program.sync(ended.folder, **login) == "MLflow: 0 metrics sent\n"
    assert server.metrics == ended.metrics


@pytest.mark.parametrize("way", BAD_WAYS)
def test_bad_server(program: Program, fake: FakeMlflow, way: str) -> None:
    fake.way = way
    ended, untracked = program.train_beside_untracked(name_of(way), fake.uri(LOGIN))
    assert fake.requests
    check(way, ended, untracked, delivered_rows(fake))
    count, folder = len(ended.metrics), ended.folder
    assert (
        f"MLflow: {count} metrics not sent, kept in {folder / 'metrics.jsonl'}; "
        f"send with: wmtp sync {folder}" in ended.said
    )
    check_sync(program, ended, fake)


def test_dead_port(program: Program) -> None:
    port = free_port()
    ended, untracked = program.train_beside_untracked(
        "dead-port", f"http://{LOGIN}127.0.0.1:{port}"
    )
    check("dead port", ended, untracked, 0)
    assert f"MLflow: {len(ended.metrics)} metrics not sent" in ended.said
    with FakeMlflow(port=port) as server:
        check_sync(program, ended, server)


@pytest.mark.parametrize("way", ["good", "hang", "trickle", "500"])
def test_server_that_comes_back_gets_every_step(
    program: Program, fake: FakeMlflow, way: str
) -> None:
    """Away from the first request on, for a third of the run; ``good`` was never away."""
    fake.way = way

    def come_back() -> None:
        assert wait_until(lambda: fake.requests, 60)
        time.sleep(SECONDS_ENOUGH / 3)
        fake.way = "good"

    thread = threading.Thread(target=come_back)
    thread.start()
    ended, untracked = program.train_beside_untracked(f"back-from-{way}", fake.uri(LOGIN))
    thread.join()
    case = "good" if way == "good" else f"{way}, then good"
    check(case, ended, untracked, delivered_rows(fake))
    assert "not sent" not in ended.said
    assert fake.metrics == ended.metrics
    assert fake.status == "FINISHED"
    assert fake.runs == 1
    assert fake.files["final/model.safetensors"] == ended.parameters


def test_upload_that_fails_is_one_warning(program: Program, fake: FakeMlflow) -> None:
    fake.artifacts_way = "500"
    ended, untracked = program.train_beside_untracked("no-upload", fake.uri())
    check("upload fails", ended, untracked, delivered_rows(fake))
    assert ended.said.count("not sent") == 1
    assert f"{ended.folder / 'final'} not sent: " in ended.said
    assert fake.metrics == ended.metrics
    fake.artifacts_way = "good"
    said = program.sync(ended.folder)
    assert said == f"MLflow: 0 metrics sent, and {ended.folder.resolve() / 'final'}\n"
    assert fake.files["final/model.safetensors"] == ended.parameters


def test_the_login_is_not_kept_in_run_yaml(program: Program, fake: FakeMlflow) -> None:
    steps = program.world.recipe["train"]["max_steps"]
    program.world.recipe["train"]["max_steps"] = 5
    ended = program.train("login", fake.uri(LOGIN))
    program.world.recipe["train"]["max_steps"] = steps
    kept = yaml.safe_load((ended.folder / "run.yaml").read_text())
    assert kept["config"]["mlflow"]["tracking_uri"] == fake.uri("***@")
    with FakeMlflow() as other:
        said = program.run(0, "sync", str(ended.folder), "--tracking-uri", other.uri(LOGIN))
        assert said.startswith(f"MLflow: {len(ended.metrics)} metrics sent")
        assert other.metrics == ended.metrics
