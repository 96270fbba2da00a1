"""End when the launcher is gone.

``torchrun`` gives each rank a session of its own: a launcher that is killed would otherwise leave
ranks that train for ever.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Final

_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_TO_SAVE: Final = 25.0


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``torchrun`` started this process, or something else did as one of several."""
    several = environment.get("WORLD_SIZE", "1") != "1"
    return several or "TORCHELASTIC_RUN_ID" in environment


def end_with_the_launcher() -> None:
    """Send this process SIGTERM, once, when its parent dies: it saves and leaves.

    A thread looks twice a second. Linux could send the signal by itself (PR_SET_PDEATHSIG), but
    sends it again for each thread of the dying parent that the child passes to, and a second
    SIGTERM ends a run without its save. A process that has not left after half a minute, as one
    that waits for a rank that is gone, is killed. Call it early: of a parent that was gone before
    nothing is known.
    """
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="wmtp-launcher", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_SAVE)
    os.write(2, b"the launcher is gone, and this rank could not end by itself: killed\n")
    os.kill(os.getpid(), signal.SIGKILL)
