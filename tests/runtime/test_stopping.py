import os
import signal
import subprocess
import sys
import threading

import pytest

from wmtp.runtime.stopping import StopRequest


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
from wmtp.runtime.stopping import StopRequest
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
