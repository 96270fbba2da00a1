"""Where the kernel confines nothing, nothing is judged: real processes under a real filter.

The filter makes the kernel answer as one that was built without Landlock, or without seccomp, or
that refuses namespaces. It is put on before ``wmtp judge`` starts, and all below it inherit it.
"""

import json
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import wmtp
from wmtp.evaluation.sandbox.inside.seccomp import ARCHITECTURES

SOURCES = Path(wmtp.__file__).parents[1]
LANDLOCK = (444, 445, 446)
PR_SET_SECCOMP = 22
NO_SUCH_CALL, INVALID, NOT_PERMITTED = 38, 22, 1

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="numbers of x86_64's calls"
)

UNDER_A_FILTER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))
code = bytes.fromhex(sys.argv[1])
kept = ctypes.create_string_buffer(code, len(code))
program = Program(len(code) // 8, ctypes.addressof(kept))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def masking(*missing: str) -> str:
    """A filter under which the kernel lacks what is named, as hexadecimal BPF."""
    steps: list[tuple[int, int, int, int]] = [(0x20, 0, 0, 0)]  # the call's number

    def refuse(number: int, error: int) -> None:
        steps.extend([(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)])

    calls = ARCHITECTURES["x86_64"].calls
    if "landlock" in missing:
        for number in LANDLOCK:
            refuse(number, NO_SUCH_CALL)
    if "namespaces" in missing:
        refuse(272, NOT_PERMITTED)  # unshare
    if "seccomp" in missing:
        refuse(317, NO_SUCH_CALL)  # seccomp
        # prctl(PR_SET_SECCOMP): first argument, then the verdict
        steps.extend(
            [
                (0x15, 0, 3, calls["prctl"]),
                (0x20, 0, 0, 16),
                (0x15, 0, 1, PR_SET_SECCOMP),
                (0x06, 0, 0, 0x00050000 | INVALID),
            ]
        )
    steps.append((0x06, 0, 0, 0x7FFF0000))
    return b"".join(struct.pack("=HBBI", *step) for step in steps).hex()


def judged(
    folder: Path, *missing: str, unsafe: bool = False, wasm: bool = False
) -> subprocess.CompletedProcess[str]:
    problem = {"task_id": 1, "text": "Add.", "code": "x", "test_list": ["assert f(1) == 2"]}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    sample = {"task_id": 1, "completion": "def f(x): return x + 1"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    command = [
        *("-m", "wmtp", "judge", str(folder / "samples.jsonl"), "--problems"),
        *(str(folder / "problems.jsonl"), *(["--unsafe"] if unsafe else [])),
    ]
    # without bubblewrap, which would be the next to be tried
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PATH": str(folder)}
    if not wasm:
        environment["WMTP_WASI_PYTHON"] = str(folder / "no-such-file.wasm")
    return subprocess.run(
        [sys.executable, "-c", UNDER_A_FILTER, masking(*missing), *command],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        (("landlock",), "landlock: Function not implemented"),
        (("seccomp",), "Programs cannot be confined here"),
        (("landlock", "seccomp", "namespaces"), "landlock: Function not implemented"),
    ],
    ids=["no Landlock", "no seccomp", "nothing"],
)
def test_a_kernel_that_lacks_a_layer_gets_no_score(
    tmp_path: Path, missing: tuple[str, ...], why: str
) -> None:
    done = judged(tmp_path, *missing)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pass@" not in done.stdout + done.stderr
    assert "passed" not in done.stdout
    assert why in done.stderr
    assert "--unsafe" in done.stderr
    assert not (tmp_path / "samples_results.jsonl").exists()


def test_the_same_filter_with_nothing_masked_changes_nothing(tmp_path: Path) -> None:
    done = judged(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pass@1: 1.0000" in done.stdout
    assert "isolation: kernel: landlock" in done.stdout


def test_without_namespaces_it_is_judged_and_said(tmp_path: Path) -> None:
    done = judged(tmp_path, "namespaces")
    assert done.returncode == 0, done.stderr
    assert "isolation: kernel: landlock, seccomp\n" in done.stdout


def test_webassembly_is_what_is_left_where_the_kernel_lacks_all_and_is_said(tmp_path: Path) -> None:
    pytest.importorskip("wasmtime", reason="the extra [wasm] is not installed")
    done = judged(tmp_path, "landlock", "seccomp", "namespaces", wasm=True)
    assert done.returncode == 0, done.stderr
    assert "isolation: wasm: wasmtime" in done.stdout


def test_unsafe_must_be_typed_and_is_said(tmp_path: Path) -> None:
    done = judged(tmp_path, "landlock", "seccomp", unsafe=True)
    assert done.returncode == 0, done.stderr
    assert "isolation: unsafe" in done.stdout
