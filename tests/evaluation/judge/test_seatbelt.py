"""macOS's way through the sandbox, with three functions of its system stood in for."""

import dataclasses
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from wmtp.errors import SandboxError
from wmtp.evaluation import Judge, Limits
from wmtp.evaluation.sandbox import ways
from wmtp.evaluation.sandbox.inside.seatbelt import profile
from wmtp.evaluation.sandbox.isolation import SEATBELT, START, Isolation, python_command

SCRIPT = Path(__file__).with_name("as_on_a_mac.py")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="its stand-in is for Linux")


def as_on_a_mac(notes: Path, behaviour: str) -> Isolation:
    def command(work: Path) -> list[str]:
        inside = str(START.parent)
        return [*python_command(work)[:-1], str(SCRIPT), str(notes), behaviour, inside]

    return dataclasses.replace(SEATBELT, command=command)


def notes_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.iterdir()]


@needs_linux
def test_programs_are_judged_the_way_of_a_mac(judge: Judge, tmp_path: Path) -> None:
    with Judge(isolations=[as_on_a_mac(tmp_path, "confine")]) as mac:
        assert mac.isolation == "seatbelt: seatbelt"
        right = "def f(x): return x + 1"
        passed = mac.judge(right, "assert f(1) == 2")
        assert passed.status == "passed"
        assert mac.judge(right, "assert f(1) == 3").status == "failed"
        assert mac.judge("print(input())", [("a", "a")], kind="stdio").passed
        spins = mac.judge("while True: pass", "f()", limits=Limits(seconds=0.3))
        assert spins.status == "timeout"
        assert 0.2 < spins.cpu_seconds < 3, "ticks were taken for nanoseconds, or not at all"
        greedy = "import time\nkept = bytearray(300 << 20)\ntime.sleep(2)"
        limits = Limits(seconds=5, memory_mb=128)
        assert mac.judge(greedy, "pass", limits=limits).status == "memory"
        assert mac.judge(greedy, "pass", limits=dataclasses.replace(limits, memory_mb=512)).passed
        assert mac.judge("open('/etc/passwd')", "pass").status == "error"
        assert mac.judge("import os; os.fork()", "pass").status == "error"
        files = "for i in range(500): open(str(i), 'w')\nimport time; time.sleep(1)"
        assert mac.judge(files, "pass", limits=Limits(files=50)).status in ("error", "output")


@needs_linux
def test_the_sandbox_comes_after_the_limits_and_before_the_program(
    judge: Judge, tmp_path: Path
) -> None:
    with Judge(isolations=[as_on_a_mac(tmp_path, "confine")]) as mac:
        for path in tmp_path.iterdir():
            path.unlink()
        assert mac.judge("def f(x): return x", "assert f(1) == 1").passed
    notes = notes_of(tmp_path)
    assert len(notes) == 2, "the program's process and that of the tests"
    for note in notes:
        assert "solution" not in note["modules"]
        assert note["seconds"] == 5
        assert note["addresses"] == resource.RLIM_INFINITY
        assert note["profile"].startswith("(version 1)\n(deny default)\n")
        assert f'(allow file-write* (subpath "{note["folder"]}") (literal "/dev/null"))' in (
            note["profile"].split("\n")
        )
    program = min(notes, key=lambda note: len(note["descriptors"]))
    # its streams, the way to the tests, and what listed them
    assert len(program["descriptors"]) == 5


@needs_linux
def test_a_sandbox_that_does_nothing_is_noticed(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="seatbelt: a program could .*change files outside"):
        Judge(isolations=[as_on_a_mac(tmp_path, "nothing")])
    assert notes_of(tmp_path)


@needs_linux
def test_a_sandbox_that_the_system_refuses_is_told(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="sandbox_init: not today"):
        Judge(isolations=[as_on_a_mac(tmp_path, "refuse")])


def test_the_profile_names_real_paths_and_quotes_them(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    awkward = tmp_path / 'a "b" \\ é'
    lines = profile([str(tmp_path / "link"), str(awkward)], "/work").split("\n")
    read = next(line for line in lines if line.startswith("(allow file-read* "))
    assert f'(subpath "{tmp_path}/real")' in read
    assert f'(subpath "{tmp_path}/a \\"b\\" \\\\ é")' in read
    assert "link" not in read
    assert not [line for line in lines if "network" in line or "process" in line or "mach" in line]


def test_a_mac_tries_its_own_sandbox_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways.sys, "platform", "darwin")
    monkeypatch.setattr(ways, "installed", lambda: True)
    names = [name for name, way in ways.WAYS.items() if way in ways.candidates()]
    assert names == ["seatbelt", "wasm"]
