"""The processes that work, and end with the one that gives them work."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from wmtp.errors import WorkerError
from wmtp.runtime.stopping import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

_tool: Any = None
"""What the work of this process is done with; set once, when it starts."""


class Run(Protocol):
    """Does work for each task; results come as they are ready, in no order."""

    def __call__(self, work: Callable[[Any, T], R], tasks: Iterable[T]) -> Iterator[R]:
        """``work(tool, task)`` for each task, which are taken a few at a time."""
        ...


@contextmanager
def pool(workers: int, tool: Any) -> Iterator[Run]:
    """Processes that hold a tool; with one worker this process does the work itself.

    Args:
        workers: processes, at least 1.
        tool: is sent to each once.

    Raises:
        WorkerError: inside the block, where a process was killed.
    """
    if workers == 1:

        def run_here(work: Callable[[Any, T], R], tasks: Iterable[T]) -> Iterator[R]:
            return (work(tool, task) for task in tasks)

        yield run_here
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, _begin, (tool,))

    def run(work: Callable[[Any, T], R], tasks: Iterable[T]) -> Iterator[R]:
        try:
            yield from _run(executor, workers, work, tasks)
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker was killed, perhaps for its memory. Run the same command again, with "
                f"fewer than {workers} --workers: it goes on where it was."
            ) from error

    try:
        yield run
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()  # what it has not finished is done again
        raise
    executor.shutdown()


def _run(
    executor: ProcessPoolExecutor, workers: int, work: Callable[[Any, T], R], tasks: Iterable[T]
) -> Iterator[R]:
    given: set[Future[R]] = set()
    for task in tasks:
        given.add(executor.submit(_work, work, task))
        if len(given) > workers + 1:
            ready, given = wait(given, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
    while given:
        ready, given = wait(given, return_when=FIRST_COMPLETED)
        for future in ready:
            yield future.result()


def _begin(tool: Any) -> None:
    global _tool
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    end_with_parent()
    _tool = tool


def _work(work: Callable[[Any, T], R], task: T) -> R:
    return work(_tool, task)
