"""``wmtp generate`` as others read it: while it writes, and when they stop reading."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes.programs import Programs
from wmtp.cli import app

ENDLESS = ["--max-new-tokens", "100000"]


@pytest.fixture(scope="module")
def model(small_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with room for a text that takes minutes."""
    folder = tmp_path_factory.mktemp("streaming") / "model"
    folder.mkdir()
    for file in small_reference.iterdir():
        content = file.read_bytes()
        if file.name == "config.json":
            content = content.replace(
                b'"max_position_embeddings": 32', b'"max_position_embeddings": 100000'
            )
            assert b"100000" in content
        (folder / file.name).write_bytes(content)
    return folder


def test_a_reader_that_leaves_ends_it_quietly(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, capsys.disabled():
        monkeypatch.setattr("sys.stdout", stream)
        command = ["generate", "--model", str(model), "--prompt", "def", *ENDLESS]
        assert app(command, standalone_mode=False) == 0  # and long before the end
        print("goes nowhere, and is no error", flush=True)


def test_ctrl_c_ends_it_with_130_and_no_traceback(model: Path, tmp_path: Path) -> None:
    program = Programs(tmp_path).fork(
        "generate", "--model", str(model), "--prompt", "def", *ENDLESS
    )
    deadline = time.monotonic() + 120
    while not program.said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert program.said  # text is there long before the end
    program.kill(signal.SIGINT)
    assert program.wait(60) == 130
    assert "Traceback" not in program.said
