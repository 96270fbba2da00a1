"""The same work again and again in processes that are killed, until one comes to its end."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

ATTEMPTS = 1000


def kill_in_place_of(number: int, names: Iterable[str]) -> None:
    """Let this process be killed in place of the n-th call of these functions of ``os``."""
    made = 0

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal made
            made += 1
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    for name in names:
        setattr(os, name, killing(getattr(os, name)))


def run_until_done(
    work: Callable[[int], None], seconds_until_kill: Callable[[int], float | None]
) -> int:
    """How many processes were killed before one was done; exits if one fails.

    Args:
        work: what each process does; takes the number of the attempt, from 0 on.
        seconds_until_kill: after how long that attempt is killed; None leaves it alone.
    """
    for attempt in range(ATTEMPTS):
        child = os.fork()
        if child == 0:
            work(attempt)
            os._exit(0)
        seconds = seconds_until_kill(attempt)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"attempt {attempt} failed")
            return attempt
    sys.exit("never done")
