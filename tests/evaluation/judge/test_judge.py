"""What the judge promises beside verdicts: it fails closed, ends cleanly, bears company."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import wmtp
from wmtp.errors import SandboxError
from wmtp.evaluation import Case, Judge, Limits, judge_many
from wmtp.evaluation import judge as judge_one
from wmtp.evaluation.sandbox import judging
from wmtp.evaluation.sandbox.isolation import KERNEL, python_command
from wmtp.evaluation.sandbox.judging import same_output
from wmtp.evaluation.sandbox.turns import Turns

RIGHT = ("def f(x): return x + 1", "assert f(1) == 2")
SOURCES = Path(wmtp.__file__).parents[1]
FULL = os.environ.get("WMTP_JUDGE_CHECK") == "full"


def processes_below(pid: int) -> list[int]:
    """A process's descendants, through every namespace."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(folder.name)] = int(fields[1])
    found, level = [], [pid]
    while level:
        level = [one for one, parent in parents.items() if parent in level]
        found += level
    return found


# failing closed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "attack"),
    [
        ({"landlock"}, "read outside"),
        ({"seccomp"}, "fork"),
        ({"landlock", "seccomp"}, "change files outside"),
        ({"landlock", "seccomp", "namespaces"}, "reach a socket outside"),
    ],
)
def test_a_layer_that_does_nothing_is_noticed(judge: Judge, missing: set[str], attack: str) -> None:
    masked = dataclasses.replace(KERNEL, layers=KERNEL.layers - missing)
    with pytest.raises(SandboxError, match=attack) as refused:
        Judge(isolations=[masked])
    assert str(refused.value).count("\n") == 1, "one line why, one line what to do"


def test_a_layer_that_the_machine_lacks_is_told(tmp_path: Path) -> None:
    """The kernel without Landlock, as its Python sees it."""
    start = tmp_path / "start.py"
    inside = SOURCES / "wmtp/evaluation/sandbox"
    start.write_text(
        f"import sys; sys.path.insert(0, {str(inside)!r})\nimport inside.landlock\n"
        "def absent(): raise OSError('landlock: Function not implemented')\n"
        "inside.landlock.landlock_version = absent\n"
        "import socket\nfrom inside.fork_server import main\n"
        "main(socket.socket(fileno=int(sys.argv[1])))\n"
    )
    lacking = dataclasses.replace(
        KERNEL, command=lambda work: [*python_command(work)[:-1], str(start)]
    )
    with pytest.raises(SandboxError, match=r"landlock: Function not implemented.*\n.*--unsafe"):
        Judge(isolations=[lacking])


def test_without_any_way_to_confine_one_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "candidates", list)
    monkeypatch.setattr(judging, "_common", {})
    verdict = judge_one(*RIGHT)
    assert (verdict.status, verdict.passed, verdict.isolation) == ("refused", False, "none")
    with pytest.raises(SandboxError):
        next(judge_many([Case(*RIGHT)]))


def test_unsafe_is_written_into_the_verdict() -> None:
    with Judge(unsafe=True) as careless:
        verdict = careless.judge(*RIGHT)
    assert verdict.passed
    assert verdict.isolation == "unsafe"


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
@pytest.mark.parametrize(("apart", "told"), [("", "reached"), ("set_apart()", "refused")])
def test_a_program_is_set_apart_from_what_shares_its_restrictions(apart: str, told: str) -> None:
    """Without the filter of system calls, which refuses signals and tracing all the same."""
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(SOURCES / 'wmtp/evaluation/sandbox')!r})\n"
        "from inside.kernel import forbid_new_privileges\n"
        "from inside.landlock import landlock_version, restrict_files, set_apart\n"
        "if landlock_version() < 6: print('old'); sys.exit()\n"
        "forbid_new_privileges()\n"
        "restrict_files(['/usr/lib'], [])\n"
        "if os.fork(): os.wait(); sys.exit()\n"
        f"{apart}\n"
        "try: os.kill(os.getppid(), 0); print('reached')\n"
        "except PermissionError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    if done.stdout == "old\n":
        pytest.skip("Landlock scopes signals from its version 6 on")
    assert done.stdout.strip() == told, done.stderr


# company ------------------------------------------------------------------------------------------


def test_importing_it_imports_no_torch() -> None:
    code = "import sys; from wmtp.evaluation import judge; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verdicts_of_many_come_as_they_are_reached(judge: Judge) -> None:
    slow = Case("import time\ndef f(x):\n time.sleep(0.5)\n return 2", RIGHT[1], name="slow")
    cases = [slow, *(Case(*RIGHT, name=number) for number in range(6))]
    order = [case.name for case, verdict in judge.judge_many(cases, workers=2) if verdict.passed]
    assert sorted(map(str, order)) == ["0", "1", "2", "3", "4", "5", "slow"]
    assert order[0] != "slow"


def test_cases_are_taken_only_when_there_is_a_worker(judge: Judge) -> None:
    taken = []

    def cases():  # type: ignore[no-untyped-def]
        for number in range(50):
            taken.append(number)
            yield Case(*RIGHT)

    found = judge.judge_many(cases(), workers=1)
    next(found)
    assert len(taken) <= 4
    found.close()


def test_threads_may_share_a_judge(judge: Judge) -> None:
    found: list[str] = []

    def work(number: int) -> None:
        program = f"def f(x): return x + {number}"
        found.append(judge.judge(program, f"assert f(1) == {number + 1}").status)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["passed"] * 8


def test_a_timeout_is_judged_again_before_it_counts(judge: Judge) -> None:
    verdict = judge.judge("while True: pass", "f()", limits=Limits(seconds=0.2))
    assert (verdict.status, verdict.attempts) == ("timeout", 2)
    assert judge.judge(*RIGHT).attempts == 1


@pytest.mark.parametrize(
    "tests",
    [
        "f(1)\nsum(range(10 ** 12))",  # one call of C, in which no Python runs
        pytest.param(
            "import signal, time\nsignal.alarm(0)\nf(1)\ntime.sleep(60)",  # no clock of its own
            marks=pytest.mark.skipif(not FULL, reason="make judge-check: takes eight seconds"),
        ),
    ],
    ids=["computing", "without their alarm"],
)
def test_tests_that_cannot_watch_over_themselves_are_ended(judge: Judge, tests: str) -> None:
    began = time.monotonic()
    verdict = judge.judge(RIGHT[0], tests, limits=Limits(seconds=0.2))
    assert (verdict.status, verdict.attempts) == ("timeout", 2), verdict
    assert time.monotonic() - began < 20
    assert judge.judge(*RIGHT).passed


def test_a_tests_process_that_dies_is_no_verdict_of_its_program(judge: Judge) -> None:
    verdict = judge.judge(RIGHT[0], "import os\nf(1)\nos._exit(0)")
    assert verdict.status == "killed", verdict


def test_a_run_alone_has_nothing_beside_it() -> None:
    turns, running, most = Turns(), [0], [0, 0]
    lock = threading.Lock()

    def run(alone: bool) -> None:
        with turns.alone() if alone else turns.shared():
            with lock:
                running[0] += 1
                most[alone] = max(most[alone], running[0])
            time.sleep(0.01)
            with lock:
                running[0] -= 1

    threads = [threading.Thread(target=run, args=(number % 4 == 0,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[True] == 1
    assert most[False] > 1


def test_a_tests_process_that_is_given_nothing_is_an_error(judge: Judge) -> None:
    with pytest.raises(ValueError, match="not empty"):
        judge.judge("x = 1", "  ")
    with pytest.raises(ValueError, match="at least one"):
        judge.judge("x = 1", [], kind="stdio")
    with pytest.raises(ValueError, match="assert or stdio"):
        judge.judge("x = 1", "x", kind="exec")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="above 0"):
        Limits(seconds=0)


def test_one_wrong_output_of_several_decides(judge: Judge) -> None:
    program = "print(int(input()) % 3)"
    verdict = judge.judge(program, [("1", "1"), ("2", "2"), ("3", "3"), ("4", "1")], kind="stdio")
    assert (verdict.status, verdict.detail) == ("failed", "test 3 of 4: another output")


def test_outputs_are_compared_by_lines() -> None:
    assert same_output("a  \nb\n\n", "a\nb")
    assert not same_output("a\n\nb", "a\nb")
    assert not same_output(" a", "a")
    assert same_output("", "\n")


# ends ---------------------------------------------------------------------------------------------


def test_closing_ends_every_process() -> None:
    with Judge() as one:
        assert one.judge(*RIGHT).passed
        server = one._server._process.pid
        below = processes_below(server)
        assert below
    assert [pid for pid in [server, *below] if Path(f"/proc/{pid}").exists()] == []


def test_a_killed_judge_leaves_nothing_running(tmp_path: Path) -> None:
    script = (
        "import os, time, threading\nfrom wmtp.evaluation import Judge\n"
        "judge = Judge()\n"
        "thread = threading.Thread(target=judge.judge, args=('while True: pass', 'f()'))\n"
        "thread.start(); time.sleep(0.3); print('running', flush=True); thread.join()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    below = processes_below(process.pid)
    assert len(below) >= 4, "fork server, supervisor, program, tests"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("layers", ["landlock namespaces seccomp", "landlock seccomp"])
def test_an_ordinary_user_gets_the_same_verdicts(layers: str) -> None:
    """With a Python that such a user can read; what runs needs the standard library only."""
    program = (
        "import dataclasses\n"
        "from wmtp.evaluation import Judge\n"
        "from wmtp.evaluation.sandbox.isolation import KERNEL\n"
        f"asked = dataclasses.replace(KERNEL, layers=frozenset({layers.split()}))\n"
        "with Judge(isolations=[asked]) as judge:\n"
        "    for p in ('return x + 1', 'return x', 'import os; os._exit(0)', 'open(\"/etc/x\")'):\n"
        f"        print(judge.judge('def f(x): ' + p, {RIGHT[1]!r}).status)\n"
        "    print(judge.isolation)\n"
    )
    for python in (sys.executable, "/usr/bin/python3"):
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        # by way of a shell: setpriv itself may still start what such a user may not
        command = [*user, "sh", "-c", 'exec "$0" "$@"', python, "-B", "-c"]
        environment = {"PYTHONPATH": str(SOURCES), "PATH": os.environ["PATH"]}
        try:
            able = subprocess.run(
                [*command, "import sys, wmtp; sys.exit(sys.version_info < (3, 11))"],
                env=environment, capture_output=True, cwd="/",
            )  # fmt: skip
        except FileNotFoundError:
            continue
        if able.returncode:
            continue
        done = subprocess.run(
            [*command, program], env=environment, capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr
        statuses = done.stdout.split("\n")
        assert statuses[:4] == ["passed", "failed", "killed", "error"]
        assert statuses[4].startswith("kernel: landlock")
        return
    pytest.skip("no Python that an ordinary user can read")
