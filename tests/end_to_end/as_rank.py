"""One of several ranks: runs commands one after the other; ``together`` starts it.

    python -m tests.end_to_end.as_rank RANK COUNT COMMANDS.json

As ``torchrun`` starts ranks, but torch is imported once for all commands, not once for each.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from wmtp.cli import _with_resume_value, app
from wmtp.runtime.stopping import StopRequest


def main() -> None:
    rank, count = int(sys.argv[1]), int(sys.argv[2])
    codes = []
    for number, command in enumerate(json.loads(Path(sys.argv[3]).read_text())):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            LOCAL_WORLD_SIZE=str(command["per_machine"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(meeting_port(Path(f"{sys.argv[3]}.port-{number}"), rank)),
        )
        stop_after = command["stop_after"] if rank == count - 1 else None
        codes.append(run(command["arguments"], stop_after))
    print(json.dumps(codes))


def meeting_port(file: Path, rank: int) -> int:
    """A port that is free just now, which the first rank picks and the others read."""
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        file.with_suffix(".tmp").write_text(str(port))
        file.with_suffix(".tmp").rename(file)
        return port
    while not file.exists():
        time.sleep(0.01)
    return int(file.read_text())


def run(arguments: list[str], stop_after: int | None) -> int:
    """Run a command; where ``stop_after`` is given, as if a signal came to this rank alone."""
    looks = 0

    def requested(_: StopRequest) -> bool:
        nonlocal looks
        looks += 1
        return looks >= (stop_after or 0)

    known: Any = StopRequest.requested
    if stop_after is not None:
        StopRequest.requested = property(requested)  # type: ignore[assignment,method-assign]
    try:
        return app(_with_resume_value(arguments), standalone_mode=False) or 0
    finally:
        StopRequest.requested = known  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
