"""Programs in WebAssembly: the same verdicts, but where it lacks something, and the same limits."""

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wmtp import cli
from wmtp.errors import ConfigError, SandboxError
from wmtp.evaluation import Case, Judge, Limits
from wmtp.evaluation.sandbox import webassembly
from wmtp.evaluation.sandbox.isolation import START, python_command
from wmtp.evaluation.sandbox.webassembly import VARIABLE, installed, wasm_isolation

from .cases import FOLDER, Expected, read_collection
from .test_references import DATA, FULL, only_full, pack, references, statuses

pytestmark = pytest.mark.skipif(not installed(), reason="needs the extra: pip install 'wmtp[wasm]'")

SAMPLE = frozenset(
    {
        "forged/equal_to_everything", "forged/exit_zero_when_loaded", "forged/frames_of_the_caller",
        "forged/writes_to_every_descriptor", "forged/fake_answers_on_the_socket",
        "forged/malformed_frame", "forged/endless_frame", "forged/closes_its_descriptors",
        "forged/replaces_the_judge_in_its_process", "forged/patched_builtins",
        "escapes/reads_a_canary", "escapes/removes_and_renames", "escapes/forks",
        "escapes/connects_to_this_machine", "escapes/leaves_its_folder_by_dots",
        "floods/output_flood", "floods/deep_recursion", "floods/aborts",
        "floods/many_files", "floods/large_files_unlinked", "floods/many_descriptors",
        "floods/memory_little_by_little",
        "odd/every_plain_type", "odd/coroutine", "odd/files_of_its_own", "odd/own_recursion_limit",
        "odd/mutates_its_arguments", "odd/unicode", "odd/threads",
        "scripts/reads_everything", "scripts/exits_with_one", "scripts/prints_at_exit",
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def wasm() -> Iterator[Judge]:
    with Judge(isolation="wasm") as one:
        yield one


def collection(tmp_path: Path, port: int) -> list[Expected]:
    (tmp_path / "canary").write_text("canary")
    return read_collection(FOLDER, tmp_path / "canary", port)


@pytest.mark.slow
def test_programs_are_judged_as_expected(wasm: Judge, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        every = collection(tmp_path, listener.getsockname()[1])
        chosen = [one for one in every if FULL or one.name in SAMPLE]
        assert len(chosen) == (len(every) if FULL else len(SAMPLE))
        expected = {one.name: one.in_wasm for one in chosen}
        found = {
            str(case.name): verdict
            for case, verdict in wasm.judge_many((one.case for one in chosen), 2)
        }
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert found.keys() == expected.keys()
    wrong = {n: v for n, v in found.items() if v.status not in expected[n]}
    assert wrong == {}
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]
    assert (tmp_path / "canary").read_text() == "canary"


def test_every_difference_is_told_and_makes_no_wrong_program_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "judge.md").read_text()
    different = [one for one in collection(tmp_path, 1) if one.lacking]
    assert different
    for one in different:
        assert one.in_wasm != one.statuses
        assert "passed" in one.statuses or "passed" not in one.in_wasm or one.lacking == "32 bits"
    reasons = {one.lacking for one in different}
    for reason in reasons:
        row = next(line for line in page.split("\n") if line.startswith(f"| {reason} |"))
        told = int(row.split("|")[3])
        assert told == sum(one.lacking == reason for one in different), row
    assert f"{len(different)} of {len(collection(tmp_path, 1))}" in page


def test_a_wrong_expectation_is_noticed(wasm: Judge) -> None:
    assert wasm.judge("def f(x): return 2", "assert f(1) == 3").status == "failed"
    assert wasm.judge("def f(x): return 2", "assert f(1) == 2").status == "passed"


def test_results_name_it(wasm: Judge) -> None:
    assert wasm.isolation.startswith("wasm: wasmtime ")
    assert wasm.judge("x = 1", "assert x == 1").isolation == wasm.isolation


@pytest.mark.skipif(not DATA.is_dir(), reason="WMTP_DATA names no folder with code/")
@pytest.mark.parametrize(("source", "every"), [("humaneval", 20), ("mbpp", 120)])
def test_reference_solutions_pass(wasm: Judge, source: str, every: int) -> None:
    cases = references(source)[:: 1 if FULL else every]
    found = statuses(wasm, cases)
    assert {name: status for name, status in found.items() if status != "passed"} == {}


@only_full
@pytest.mark.skipif(not DATA.is_dir(), reason="WMTP_DATA names no folder with code/")
def test_buggy_solutions_fail(wasm: Judge) -> None:
    short = Limits(seconds=0.7)
    cases = [dataclasses.replace(case, limits=short) for case in pack("buggy_solution")]
    assert "passed" not in statuses(wasm, cases).values()


# limits -------------------------------------------------------------------------------------------


def test_limits_are_told_apart(wasm: Judge) -> None:
    few = Limits(seconds=0.1, memory_mb=64, output_bytes=1000)
    for program, status in (
        ("while True: pass", "timeout"),
        ("kept = []\nwhile True: kept.append(bytearray(1 << 20))", "memory"),
        ("print('x' * 50_000)", "output"),
        ("import os\nos.abort()", "killed"),
        ("1 / 0", "error"),
    ):
        verdict = wasm.judge(program, "pass", limits=few)
        assert verdict.status == status, (program, verdict)


def test_memory_is_counted_beyond_pythons_own(wasm: Judge) -> None:
    program = "kept = bytearray(100 << 20)"
    assert wasm.judge(program, "pass", limits=Limits(memory_mb=128)).passed
    assert wasm.judge(program, "pass", limits=Limits(memory_mb=64)).status == "memory"


def test_time_is_as_much_longer_as_python_is_slower_there(wasm: Judge) -> None:
    """Three times the limit of time, which elsewhere would end it."""
    busy = (
        "import time\ndef f():\n end = time.process_time() + 0.3\n"
        " while time.process_time() < end: pass\n return 1"
    )
    verdict = wasm.judge(busy, "assert f() == 1", limits=Limits(seconds=0.1))
    assert verdict.passed, verdict
    assert 0.3 <= verdict.cpu_seconds < 0.5


def test_copies_of_an_instance_share_nothing(wasm: Judge) -> None:
    draws = "import random, builtins\nprint(random.random(), hasattr(builtins, 'mine'))\n"
    draws += "builtins.mine = 1\nopen('left', 'w')"
    printed = {wasm._run_script(draws, "", Limits())[1] for _ in range(3)}
    assert len(printed) == 3
    assert all(line.endswith("False\n") for line in printed)
    lists = (
        "import os\nprint(os.listdir('.'), sorted(os.listdir('/')), sorted(os.listdir('/judge')))"
    )
    assert wasm._run_script(lists, "", Limits())[1] == "[] ['dev', 'judge', 'work'] ['job']\n"


def test_calls_nest_as_deep_as_elsewhere(wasm: Judge) -> None:
    program = (
        "import functools\n@functools.lru_cache(None)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "def g(n): return 0 if n == 0 else 1 + sorted([0], key=lambda v: g(n - 1))[0]\n"
        "class A:\n"
        "    def __init__(self, below): self.below = below\n"
        "    def __eq__(self, other): return self.below == other.below\n"
        "def chain(n):\n"
        "    one = None\n    for _ in range(n): one = A(one)\n    return one\n"
        "def equal(n): return chain(n) == chain(n)\n"
    )
    tests = "assert f(450) == 450 and g(300) == 1 and equal(450)"
    assert wasm.judge(program, tests).passed


def test_calls_that_nest_too_deep_are_errors_of_the_program(wasm: Judge) -> None:
    programs = {
        "lru": "import functools\n@functools.lru_cache(None)\ndef f(n): return f(n + 1)",
        "getattr": "class A:\n def __getattr__(self, n): return getattr(self, n + 'x')\nf = A",
        "repr": "def f(n):\n x = []\n for _ in range(100_000): x = [x]\n return repr(x)",
        "key": "def f(n): return sorted([n], key=lambda v: f(v))",
        "parse": "def f(n): return eval('-' * 100_000 + '1')",
    }
    for name, program in programs.items():
        deep = f"import sys\nsys.setrecursionlimit(10**9)\n{program}"
        run = f"{deep}\ntry: {'f().y' if name == 'getattr' else 'f(1)'}\n"
        run += "except (RecursionError, MemoryError): print('too deep')"
        verdict, printed = wasm._run_script(run, "", Limits())
        assert (verdict.status, printed) == ("passed", "too deep\n"), (name, verdict)


# what it is made of -------------------------------------------------------------------------------


def test_an_instance_that_reaches_files_is_noticed(tmp_path: Path) -> None:
    """The functions that it is given, changed so that a path outside opens a file outside."""
    start = tmp_path / "start.py"
    start.write_text(
        f"import os, socket, sys; sys.path.insert(0, {str(START.parent)!r})\n"
        "from inside.wasm import files\n"
        "find = files.Tree.find\n"
        "def leaking(tree, base, path):\n"
        "    outside = '/' + path\n"
        "    if os.path.isfile(outside):\n"
        "        return files.File(open(outside, 'rb').read())\n"
        "    return find(tree, base, path)\n"
        "files.Tree.find = leaking\n"
        "from inside.fork_server import main\n"
        "main(socket.socket(fileno=int(sys.argv[1])))\n"
    )
    leaking = dataclasses.replace(
        wasm_isolation(), command=lambda work: [*python_command(work)[:-1], str(start)]
    )
    with pytest.raises(SandboxError, match="wasm: a program could read outside"):
        Judge(isolations=[leaking])


def test_another_python_is_refused_with_a_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent.wasm"))
    with pytest.raises(SandboxError, match=f"{VARIABLE} is .*which is no file"):
        Judge(isolation="wasm")
    (tmp_path / "absent.wasm").write_bytes(b"MZ")
    with pytest.raises(SandboxError, match=r"absent\.wasm: not a module of WebAssembly"):
        Judge(isolation="wasm")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(webassembly, "_SHA256", "0" * 64)
    with pytest.raises(SandboxError, match="not the file that it should be"):
        Judge(isolation="wasm")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webassembly, "_folder_of", lambda package: None)
    assert not webassembly.installed()
    with pytest.raises(SandboxError, match=r"pip install 'wmtp\[wasm\]'"):
        Judge(isolation="wasm")


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMTP_CACHE", "/proc/absent")
    given = dict(wasm_isolation().wasm)
    assert given["cache"] == "/proc/absent/wasm"
    code = (
        f"import sys; sys.path.insert(0, {str(START.parent)!r})\n"
        "from inside.wasm.compiled import machine_code\n"
        "print(machine_code(b'', '', '/proc/absent/wasm', lambda: b'made'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "b'made'\n"


def test_the_command_line_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = '{"task_id": 1, "text": "Add.", "code": "x", "test_list": ["assert f(1) == 2"], '
    (tmp_path / "problems.jsonl").write_text(problems + '"test_setup_code": ""}\n')
    (tmp_path / "samples.jsonl").write_text('{"task_id": 1, "completion": "def f(x): return 2"}\n')
    given = [str(tmp_path / "samples.jsonl"), "--problems", str(tmp_path / "problems.jsonl")]

    def run(*more: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["wmtp", "judge", *given, *more])
            try:
                cli.main()
            except SystemExit as ended:
                return int(ended.code or 0)
        return 0

    assert run("--isolation", "container") == 2
    assert "Use kernel, bubblewrap, seatbelt, wasm." in capsys.readouterr().err
    assert run("--isolation", "wasm", "--unsafe") == 2
    capsys.readouterr()
    assert run("--isolation", "wasm") == 0
    assert "isolation: wasm: wasmtime" in capsys.readouterr().out


def test_an_unknown_isolation_is_a_mistake_of_the_user() -> None:
    with pytest.raises(ConfigError, match="isolation is 'jail'"):
        Judge(isolation="jail")


def test_it_runs_where_the_kernel_confines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, after what the system has was tried and found wanting."""
    from wmtp.evaluation.sandbox import judging, ways

    bare = dataclasses.replace(ways.WAYS["kernel"](), layers=frozenset())
    monkeypatch.setattr(judging, "candidates", lambda: [lambda: bare, ways.WAYS["wasm"]])
    with Judge() as one:
        assert one.isolation.startswith("wasm: ")
        case = Case("def f(x): return x + 1", "assert f(1) == 2")
        assert [verdict.status for _, verdict in one.judge_many([case] * 4, 2)] == ["passed"] * 4


def test_nothing_is_left_when_it_is_closed() -> None:
    with Judge(isolation="wasm") as one:
        pid = one._server._process.pid
        folder = one._server._folder.name
        assert one.judge("x = 1", "assert x == 1").passed
    assert not Path(f"/proc/{pid}").exists()
    assert not os.path.exists(folder)
