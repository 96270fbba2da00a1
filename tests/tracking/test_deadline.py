import threading
import time

import pytest

from wmtp.tracking.deadline import Deadline


def no_requests() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "wmtp-request"]


def trickle(stop: threading.Event) -> None:
    while not stop.wait(0.02):  # each wait is as short as a socket's, and there is no last one
        pass


def test_an_answer_comes_through() -> None:
    assert Deadline(5).call(lambda: "answer") == "answer"


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own")])
def test_an_error_comes_through(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        Deadline(5).call(fail)


def test_what_never_ends_is_given_up_and_its_thread_ends() -> None:
    stop = threading.Event()
    deadline = Deadline(0.1)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.1 s"):
        deadline.call(lambda: trickle(stop))
    assert time.monotonic() - started < 1  # and not for ever
    while not no_requests():
        assert time.monotonic() - started < 5
        time.sleep(0.01)
    assert not stop.is_set()
    assert deadline.call(lambda: "next") == "next"


def test_there_is_never_a_second_thread_left_behind() -> None:
    let_go = threading.Event()
    deadline = Deadline(0.05)
    with pytest.raises(TimeoutError, match="no answer"):
        deadline.call(lambda: let_go.wait(20))  # one wait: it cannot be interrupted
    for _ in range(3):
        with pytest.raises(TimeoutError, match="an earlier request is still without an answer"):
            deadline.call(lambda: 1)
    assert len([t for t in threading.enumerate() if t.name == "wmtp-request"]) == 1
    let_go.set()
    while not no_requests():
        time.sleep(0.01)
    assert deadline.call(lambda: 1) == 1


def test_one_call_may_have_a_time_of_its_own() -> None:
    assert Deadline(0.01).call(lambda: time.sleep(0.1) or "slow", seconds=5) == "slow"


def test_without_a_limit_calls_are_made_here() -> None:
    assert Deadline(None).call(threading.current_thread) is threading.current_thread()
