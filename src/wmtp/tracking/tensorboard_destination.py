"""Send a run to TensorBoard: event files in the run folder."""

import importlib.util
import time
from collections.abc import Sequence
from typing import Any, final

from wmtp.errors import ConfigError
from wmtp.runtime.metrics import Row
from wmtp.runtime.run_folder import RunFolder
from wmtp.tracking.trackers import RunStatus


def require_tensorboard() -> None:
    """Refuse ``tensorboard.enabled`` where the package is missing; imports nothing.

    Raises:
        ConfigError: says what to install.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard.enabled is true, but the package is not installed. "
            "Run pip install 'wmtp[tensorboard]', or set tensorboard.enabled: false."
        )


@final
class TensorboardDestination:
    """Event files that ``tensorboard --logdir`` shows; a resumed run adds a file."""

    name = "TensorBoard"
    close_seconds = 20.0

    def __init__(self, folder: RunFolder) -> None:
        """Take where the files go.

        Raises:
            ConfigError: the package is missing.
        """
        require_tensorboard()
        self._folder = folder.tensorboard
        self._writer: Any = None

    def connect(self) -> bool:
        """Open a new event file; the run is empty if it is the first."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped, unused-ignore]

        if self._writer is not None:  # again, after a failure
            self._writer.close()
        is_empty = not any(self._folder.glob("events.out.tfevents.*"))
        self._writer = EventFileWriter(str(self._folder))
        return is_empty

    def send(self, rows: Sequence[Row]) -> None:
        """Write each row's numbers at its step."""
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped, unused-ignore]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped, unused-ignore]

        for row in rows:
            values = [
                Summary.Value(tag=name, simple_value=float(value))
                for name, value in row.items()
                if name != "step"
            ]
            event = Event(
                wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values)
            )
            self._writer.add_event(event)
        self._writer.flush()

    def close(self, status: RunStatus) -> None:
        """Close the event file and end the writer's thread."""
        self._writer.close()
