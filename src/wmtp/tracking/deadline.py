"""Calls that may block for ever, each waited for only so long."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, final

T = TypeVar("T")


class _LeftBehind(SystemExit):
    """Ends a thread that nobody waits for; of a SystemExit threading prints no traceback."""


@final
class Deadline:
    """Makes calls in a thread beside, one at a time, and waits for each so long and no longer.

    A socket's timeout counts from byte to byte, so a server that sends one byte a second keeps a
    client for ever. Here the caller goes on, and the thread that is left behind is told to end: it
    does at its next Python instruction, so at the next byte or at the socket's timeout. Until then
    every further call fails at once, so that there is never more than one such thread. It is a
    daemon and delays no exit.

    Example:
        >>> Deadline(seconds=5).call(lambda: 6 * 7)
        42
    """

    def __init__(self, seconds: float | None) -> None:
        """Take how long a call is waited for; None means that calls are made directly."""
        self._seconds = seconds
        self._left_behind: threading.Thread | None = None

    def call(self, function: Callable[[], T], seconds: float | None = None) -> T:
        """What the function returns or raises.

        Args:
            function: what may block; it must be safe to call from any thread.
            seconds: a time for this call alone.

        Raises:
            TimeoutError: no answer in time, or an earlier call is still without one.
        """
        if self._seconds is None:
            return function()
        limit = self._seconds if seconds is None else seconds
        if self._left_behind is not None and self._left_behind.is_alive():
            raise TimeoutError("an earlier request is still without an answer")
        answer: Future[T] = Future()
        thread = threading.Thread(
            target=_answer, args=(function, answer), name="wmtp-request", daemon=True
        )
        thread.start()
        try:
            return answer.result(timeout=limit)
        except TimeoutError:
            if answer.done():  # the function's own, or it came this very moment
                return answer.result()
            self._left_behind = thread
            _tell_to_end(thread)
            raise TimeoutError(f"no answer within {limit:g} s") from None


def _answer(function: Callable[[], T], answer: "Future[T]") -> None:
    try:
        answer.set_result(function())
    except BaseException as error:  # raised again by who waits for the answer
        if not answer.done():  # told to end at its very end
            answer.set_exception(error)


def _tell_to_end(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(_LeftBehind)
    )
