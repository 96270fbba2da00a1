"""macOS: the sandbox that the system's own programs run in.

Nobody has run this on a Mac yet. The judge's attack on itself decides whether it holds there.
"""

import os
from collections.abc import Iterable
from typing import Final

from .darwin import enter_sandbox
from .library import DEVICES

# what the loader of shared libraries reads, and time zones; /usr/lib is among Python's own paths
_OF_THE_SYSTEM: Final = (
    "/System/Library", "/System/Volumes/Preboot/Cryptexes", "/private/var/db/dyld",
    "/private/var/db/timezone", "/usr/share/zoneinfo", "/usr/share/icu",
)  # fmt: skip


def confine(readable: list[str], folder: str) -> None:
    """From here on: no processes, no network, no files but ``readable`` ones and ``folder``.

    Raises:
        OSError: the system refused.
    """
    enter_sandbox(profile([*readable, *_OF_THE_SYSTEM], folder))


def profile(readable: Iterable[str], folder: str) -> str:
    """The rules, which see paths without symbolic links: /tmp is /private/tmp there.

    What is not allowed is denied: forks, programs, sockets, Mach services, shared memory, signals
    to others. That a path exists can be seen, as Python's import system needs.
    """
    reads = sorted({os.path.realpath(path) for path in readable} - set(DEVICES))
    library = " ".join(f"(subpath {_quoted(path)})" for path in reads)
    devices = " ".join(f"(literal {_quoted(path)})" for path in DEVICES)
    own = f"(subpath {_quoted(os.path.realpath(folder))})"
    return "\n".join(
        (
            "(version 1)",
            "(deny default)",
            "(allow file-read-metadata)",
            f"(allow file-read* {library} {devices} {own})",
            f"(allow file-map-executable {library})",
            f'(allow file-write* {own} (literal "/dev/null"))',
            "(allow sysctl-read)",
            "(allow signal (target self))",
        )
    )


def _quoted(path: str) -> str:
    r"""A path as a string of the profile's language.

    Example:
        >>> print(_quoted('/Users/Zoë/a "b"'))
        "/Users/Zoë/a \"b\""
    """
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
