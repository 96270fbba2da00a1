"""Stop cleanly after SIGINT or SIGTERM: finish the step, save, leave."""

import contextlib
import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Final, Self, final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_NOTICE: Final = b"\nstopping after this step; a second signal ends at once\n"


def end_in_order() -> None:
    """Have SIGINT and SIGTERM run ``with`` and ``finally`` wherever no StopRequest is.

    While something is imported they end the process on the spot instead: there is nothing to
    clean up yet, and C code swallows an exception there (torch goes on with half of numpy).
    """
    for number in _SIGNALS:
        signal.signal(number, _raise_unless_importing)


def _raise_unless_importing(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process wherever it is
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.kill(os.getpid(), number)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@final
class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag that the training loop reads.

        with StopRequest() as stop:
            for step in ...:
                ...
                if stop.requested:
                    break
        return stop.exit_code

    The second signal raises ``KeyboardInterrupt`` (SIGINT) or ``SystemExit`` (SIGTERM), so that
    ``finally`` and ``with`` still clean up; a third finds the handlers from before. Outside the
    main thread Python delivers no signals, and the flag simply stays down.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}
        self._owner_pid = os.getpid()

    @property
    def requested(self) -> bool:
        """True once a signal has come."""
        return self._received is not None

    @property
    def signal_name(self) -> str | None:
        """``SIGINT`` or ``SIGTERM``, None as long as none has come."""
        return self._received.name if self._received else None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 0 if none has come."""
        return 128 + self._received if self._received else 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None: a handler installed by C code, which Python could not put back
                self._previous[number] = signal.getsignal(number) or signal.SIG_DFL
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._owner_pid:
            _end_forked_child(received)
        elif self._received is None:
            self._received = received
            # print() is not safe in a handler: the signal may have come in the middle of one
            with contextlib.suppress(OSError):
                os.write(2, _NOTICE)
        else:
            self._restore()
            if received is signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + received)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Have this process, started by ``multiprocessing``, end the moment its parent is gone.

    Torch's workers look for that themselves, but compare with the parent that they find when they
    are ready: one whose parent was killed before would wait for it for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was not started by multiprocessing")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="wmtp-parent", daemon=True).start()


def _end_forked_child(received: signal.Signals) -> None:
    """Let a loader's worker end on SIGTERM; Ctrl-C is left to its parent, which ends it in turn."""
    if received is signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
