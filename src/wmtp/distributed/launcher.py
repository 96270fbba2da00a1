"""End when the launcher is gone.

``torchrun`` gives each rank a session of its own: a launcher that is killed would otherwise leave
ranks that train for ever.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_SECONDS_BETWEEN_LOOKS: Final = 2.0
_SECONDS_TO_SAVE: Final = 25.0


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``torchrun`` started this process, or something else did as one of several."""
    several = environment.get("WORLD_SIZE", "1") != "1"
    return several or "TORCHELASTIC_RUN_ID" in environment


def end_with_the_launcher() -> None:
    """Send this process SIGTERM when its parent dies: it saves and leaves.

    The kernel does it on Linux; elsewhere, and where the parent's thread ended instead of the
    parent, a thread looks every two seconds. A process that has not left after half a minute, as
    one that waits for a rank that is gone, is killed. Call it early: of a parent that was gone
    before nothing is known.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died in between: the kernel has nothing to wait for
            os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=_watch, args=(parent,), name="wmtp-launcher", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if sys.platform != "linux":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_SAVE)
    os.write(2, b"the launcher is gone, and this rank could not end by itself: killed\n")
    os.kill(os.getpid(), signal.SIGKILL)
