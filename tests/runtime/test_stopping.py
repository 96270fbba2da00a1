import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wmtp.runtime.stopping import StopRequest, end_in_order


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_only_noted(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert (stop.requested, stop.exit_code, stop.signal_name) == (False, 0, None)
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.exit_code, stop.signal_name) == (True, code, number.name)
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def stop_twice(number: signal.Signals, unwound: list[bool]) -> None:
    before = signal.getsignal(number)
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            os.kill(os.getpid(), number)
        finally:
            unwound.append(signal.getsignal(number) is before)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_second_signal_ends_at_once_and_unwinds(
    number: signal.Signals, expected: type[BaseException]
) -> None:
    unwound: list[bool] = []
    with pytest.raises(expected):
        stop_twice(number, unwound)
    assert unwound == [True]


def test_other_threads_may_use_it_without_signals() -> None:
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_forked_worker_still_ends_on_sigterm_and_leaves_ctrl_c_to_its_parent() -> None:
    code = """
import os, signal, time
from wmtp.runtime.stopping import StopRequest, end_in_order
with StopRequest() as stop:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status), stop.requested)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20
    )
    assert result.stdout == f"{int(signal.SIGTERM)} False\n"
    assert result.stderr == ""


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_outside_training_a_signal_unwinds_and_a_second_one_would_kill(
    handlers: None, number: signal.Signals, expected: type[BaseException]
) -> None:
    end_in_order()
    with pytest.raises(expected) as caught:
        os.kill(os.getpid(), number)
    if expected is SystemExit:
        assert caught.value.code == 143
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_is_never_left_halfway_by_a_signal(
    number: signal.Signals, tmp_path: Path
) -> None:
    """The module swallows what is raised in it, as C code does; the process must not live on."""
    (tmp_path / "swallows.py").write_text(
        "import os, sys\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "except BaseException:\n"
        "    pass\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from wmtp.runtime.stopping import end_in_order\n"
        "end_in_order()\n"
        "import swallows\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -number


ORPHAN = """
import multiprocessing, os, time

def child(begun, parent):
    begun.send(True)
    while os.getppid() == parent:  # it is killed before the child is ready
        time.sleep(0.01)
    print("alone", flush=True)
    from wmtp.runtime.stopping import end_with_parent
    end_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    seen, begun = spawn.Pipe(duplex=False)
    spawn.Process(target=child, args=(begun, os.getpid())).start()
    seen.recv()
    os.kill(os.getpid(), 9)
"""


def test_a_worker_ends_though_its_parent_was_killed_before_it_was_ready(tmp_path: Path) -> None:
    program = tmp_path / "orphan.py"
    program.write_text(ORPHAN)
    # returns when the last process that holds standard output is gone
    ended = subprocess.run([sys.executable, program], capture_output=True, check=False, timeout=30)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b"alone\n"
