"""Processes that work for this one, and end with it."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from wmtp.errors import WorkerError
from wmtp.runtime.stopping import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Tasks that wait for a free process, so that none waits for who makes them."""

_tool: Any = None
"""What the work of this process is done with; set once, when it starts."""


class Run(Protocol):
    """Does work for each task, of which a few are taken ahead."""

    def __call__(
        self, work: Callable[[Any, T], R], tasks: Iterable[T], in_order: bool = False
    ) -> Iterator[R]:
        """``work(tool, task)`` for each task: as they are ready, or in the order of the tasks."""
        ...


@contextmanager
def pool(workers: int, tool: Any) -> Iterator[Run]:
    """Processes that hold a tool; with one worker this process does the work itself.

    An exception, of a worker or inside the block, ends all processes on the spot.

    Args:
        workers: processes; 0 and 1 stand for this one alone.
        tool: is sent to each once.

    Raises:
        WorkerError: inside the block, where a process was killed.
    """
    if workers <= 1:
        yield here(tool)
        return
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (tool,))

    def run(work: Callable[[Any, T], R], tasks: Iterable[T], in_order: bool = False) -> Iterator[R]:
        futures = (executor.submit(_work, work, task) for task in tasks)
        results = _in_order if in_order else _as_ready
        try:
            yield from results(futures, workers + _AHEAD)
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker was killed, perhaps for its memory. Run the same command again, with "
                f"fewer than {workers} --workers."
            ) from error

    try:
        yield run
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise
    executor.shutdown()


def here(tool: Any) -> Run:
    """Does the work in this process, when its result is asked for."""

    def run(work: Callable[[Any, T], R], tasks: Iterable[T], in_order: bool = False) -> Iterator[R]:
        return (work(tool, task) for task in tasks)

    return run


def _as_ready(futures: Iterable[Future[R]], most: int) -> Iterator[R]:
    given: set[Future[R]] = set()
    for future in futures:
        given.add(future)
        if len(given) >= most:
            ready, given = wait(given, return_when=FIRST_COMPLETED)
            for done in ready:
                yield done.result()
    while given:
        ready, given = wait(given, return_when=FIRST_COMPLETED)
        for done in ready:
            yield done.result()


def _in_order(futures: Iterable[Future[R]], most: int) -> Iterator[R]:
    given: deque[Future[R]] = deque()
    for future in futures:
        given.append(future)
        if len(given) >= most:
            yield given.popleft().result()
    while given:
        yield given.popleft().result()


def _begin(tool: Any) -> None:
    global _tool
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    end_with_parent()
    _tool = tool


def _work(work: Callable[[Any, T], R], task: T) -> R:
    return work(_tool, task)
