"""What the user sees: a progress bar on a terminal, plain lines elsewhere, all of it in a log.

Progress and notes go to standard error, results to standard output.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO, final

import rich.console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from wmtp.errors import StorageError, WmtpError
from wmtp.runtime.line_file import LineFile
from wmtp.secrets import without_secrets

Figures = Mapping[str, int | float]

_SECONDS_BETWEEN_REDRAWS: Final = 0.1
_SECONDS_BETWEEN_PLAIN_LINES: Final = 10.0
_NARROWEST_BAR: Final = 10


@final
class Console:
    """Writes to the terminal and to ``train.log``; safe to use from several threads.

    with Console(folder.log_file) as console:
        console.line("48 documents, 120,000 tokens")
        with console.progress(done=0, total=100) as bar:
            bar.update(1, {"loss": 3.2, "ce/head_0": 2.9, "tokens_per_second": 1234.0})
    """

    def __init__(self, log_file: Path | None = None, *, stream: TextIO | None = None) -> None:
        """Open the log.

        Args:
            log_file: appended to, each line with the time; None keeps no log.
            stream: where progress and notes go, standard error unless given.

        Raises:
            StorageError: the log cannot be opened.
        """
        self._stream = stream or sys.stderr
        self.is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        # rich is told, or FORCE_COLOR would make it draw a moving bar into a file
        self._rich = rich.console.Console(
            file=self._stream, force_terminal=self.is_terminal, highlight=False, markup=False
        )
        self._lock = threading.RLock()
        self._log: LineFile | None = None
        self._log_warned = False
        if log_file is not None:
            self.keep_log(log_file)

    def keep_log(self, log_file: Path) -> None:
        """Write everything from here on to this file as well.

        Raises:
            StorageError: the log cannot be opened.
        """
        with self._lock:
            self.close()
            self._log = LineFile(log_file)

    def line(self, text: str) -> None:
        """Show a note, above the progress bar if there is one."""
        self._show(without_secrets(text))

    def warning(self, text: str) -> None:
        """Show a note that the user should not miss."""
        self._show(f"warning: {without_secrets(text)}", style="yellow")

    def result(self, text: str) -> None:
        """Print what the user asked for to standard output."""
        text = _writable(without_secrets(text))
        with self._lock:
            print(text, file=sys.stdout, flush=True)
            self.log(text)

    def log(self, text: str) -> None:
        """Write to the log alone."""
        with self._lock:
            if self._log is None:
                return
            now = datetime.now().isoformat(" ", "seconds")
            lines = "".join(f"{now}  {part}\n" for part in _writable(text).splitlines())
            try:
                self._log.append(lines.encode(errors="replace"))
                self._log_warned = False
            except StorageError as error:
                # no reason to lose a run; the lines are kept and tried again with the next
                if not self._log_warned:
                    self._log_warned = True
                    self._show(f"warning: {error} Lines are kept and tried again.")

    @contextmanager
    def progress(
        self,
        done: int,
        total: int,
        unit: str = "step",
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator["ProgressBar"]:
        """Show work going from ``done`` to ``total`` for the length of the block."""
        bar = ProgressBar(self, self._rich if self.is_terminal else None, done, total, unit, clock)
        try:
            yield bar
        finally:
            bar.close()

    def close(self) -> None:
        """Close the log."""
        with self._lock:
            log, self._log = self._log, None
            if log is None:
                return
            try:
                log.close()
            except StorageError as error:
                self._show(f"warning: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, WmtpError):  # shown by who catches it; the log tells why it ends here
            self.log(f"error: {without_secrets(str(error))}")
        self.close()

    def _show(self, text: str, style: str | None = None) -> None:
        with self._lock:
            text = _writable(text)
            self._rich.print(text, style=style, soft_wrap=True)
            self.log(text)


@final
class ProgressBar:
    """How far some work has come; made by ``Console.progress``."""

    def __init__(
        self,
        console: Console,
        terminal: rich.console.Console | None,
        done: int,
        total: int,
        unit: str,
        clock: Callable[[], float],
    ) -> None:
        self._console, self._terminal = console, terminal
        self._done, self._total, self._unit = done, total, unit
        self._clock = clock
        self._figures: Figures = {}
        # the first unit of work compiles, warms up and fills caches: the rate starts after it
        self._rate_from: tuple[int, float] | None = None
        self._drawn_at = self._shown_at = clock()
        self._bar = _start_bar(terminal, done, total) if terminal is not None else None
        self._draw()

    def advance(self, done: int) -> None:
        """Move on; cheap enough for every step. Off a terminal, a line every ten seconds."""
        self._move(done)
        now = self._clock()
        if self._bar is not None:
            if now - self._drawn_at >= _SECONDS_BETWEEN_REDRAWS:
                self._draw()
        elif now - self._shown_at >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._show_line()

    def update(self, done: int, figures: Figures) -> None:
        """Move on, with the figures of a logged step; a line, or the terminal's bar.

        Args:
            done: units of work done.
            figures: a row of metrics; loss, ``ce/head_*`` and tokens per second are shown.
        """
        self._move(done)
        self._figures = dict(figures)
        self._show_line()

    def report(self, done: int, figures: Figures) -> None:
        """Show figures that deserve a line of their own everywhere, such as an evaluation's."""
        self._console.line(f"{self._unit} {done}/{self._total}  {grouped_text(figures)}")

    def close(self) -> None:
        """Leave the bar as it stands and give the terminal back."""
        if self._bar is not None:
            self._draw()
            self._bar.stop()
            self._bar = None

    def _move(self, done: int) -> None:
        self._done = done
        if self._rate_from is None:
            self._rate_from = (done, self._clock())

    def _seconds_left(self) -> float | None:
        if self._rate_from is None or not self._rate_from[0] < self._done < self._total:
            return None
        done, since = self._rate_from
        seconds_each = (self._clock() - since) / (self._done - done)
        return seconds_each * (self._total - self._done)

    def _show_line(self) -> None:
        self._shown_at = self._clock()
        text = self._text(None)
        if self._bar is not None:
            self._draw()
            self._console.log(text)
        else:
            self._console.line(text)

    def _text(self, width: int | None) -> str:
        place = f"{self._unit} {self._done}/{self._total}"
        return progress_text(place, self._figures, self._seconds_left(), width)

    def _draw(self) -> None:
        if self._bar is None or self._terminal is None:
            return
        self._drawn_at = self._clock()
        width = self._terminal.width
        text = self._text(width)
        # what the text leaves over goes to the bar, which on a narrow terminal is nothing
        self._bar.columns = _columns(width - len(text) - 1)
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self._done, description=text)
        self._bar.refresh()


def grouped_text(figures: Figures) -> str:
    """Figures in one line, those of the heads behind one name.

    Example:
        >>> grouped_text({"eval/loss": 2.5, "eval/ce/head_0": 2.0, "eval/ce/head_1": 3.25})
        'eval/loss 2.5  eval/ce 2 3.25'
    """
    groups: dict[str, list[str]] = {}
    for name, value in figures.items():
        groups.setdefault(name.partition("/head_")[0], []).append(_number(value))
    return "  ".join(f"{name} {' '.join(values)}" for name, values in groups.items())


def progress_text(
    place: str, figures: Figures, seconds_left: float | None, width: int | None = None
) -> str:
    """One line on how far the work has come, shortened until it fits.

    What goes first when there is no room: the heads' cross-entropies, the speed, the time left.

    Example:
        >>> row = {"loss": 3.2104, "ce/head_0": 2.9, "ce/head_1": 3.43, "tokens_per_second": 1234.2}
        >>> progress_text("step 20/100", row, 200.0)
        'step 20/100  loss 3.210  ce 2.90 3.43  1234 tok/s  eta 0:03:20'
        >>> progress_text("step 20/100", row, 200.0, width=40)
        'step 20/100  loss 3.210  eta 0:03:20'
    """
    parts = {"place": place}
    if "loss" in figures:
        parts["loss"] = f"loss {figures['loss']:.3f}"
    ce = [value for name, value in figures.items() if name.startswith("ce/head_")]
    if ce:
        parts["ce"] = "ce " + " ".join(f"{value:.2f}" for value in ce)
    if "tokens_per_second" in figures:
        parts["speed"] = f"{figures['tokens_per_second']:.0f} tok/s"
    if seconds_left is not None:
        parts["eta"] = f"eta {_clock_time(seconds_left)}"
    for dispensable in ("ce", "speed", "eta", "loss"):
        text = "  ".join(parts.values())
        if width is None or len(text) <= width:
            return text
        parts.pop(dispensable, None)
    return place[:width]


def _writable(text: str) -> str:
    """The text with what no encoding can take written out, such as a file name in Latin-1."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _start_bar(terminal: rich.console.Console, done: int, total: int) -> RichProgress:
    # no refresh thread, and standard output stays what it is: results go there
    bar = RichProgress(
        *_columns(0),
        console=terminal,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("", total=total, completed=done)
    bar.start()
    return bar


def _columns(room: int) -> tuple[TextColumn | BarColumn, ...]:
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    if room < _NARROWEST_BAR:
        return (text,)
    return text, BarColumn(bar_width=min(room, 40))
