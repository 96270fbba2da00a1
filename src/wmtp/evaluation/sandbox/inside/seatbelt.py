"""macOS: the sandbox that the system's own programs run in.

Nobody has run this on a Mac yet. The judge's attack on itself decides whether it holds there.
"""

import ctypes
import json

from .landlock import DEVICES


def confine(folder: str) -> None:
    """From here on: no processes, no network, no files but Python's library and ``folder``.

    Raises:
        OSError: the system refused.

    Source:
        sandbox_init(3) of macOS, deprecated and in use by browsers.
    """
    from .landlock import library_paths

    system = ctypes.CDLL("/usr/lib/libSystem.dylib", use_errno=True)
    message = ctypes.c_char_p()
    profile = _profile(library_paths(), folder).encode()
    if system.sandbox_init(profile, ctypes.c_uint64(0), ctypes.byref(message)) != 0:
        raise OSError(f"sandbox_init: {(message.value or b'').decode(errors='replace')}")


def _profile(readable: list[str], folder: str) -> str:
    reads = " ".join(f"(subpath {json.dumps(path)})" for path in [*readable, "/System/Library"])
    devices = " ".join(f"(literal {json.dumps(path)})" for path in DEVICES)
    return "\n".join(
        (
            "(version 1)",
            "(deny default)",
            f"(allow file-read* {reads} {devices} (subpath {json.dumps(folder)}))",
            "(allow file-read-metadata)",
            f'(allow file-write* (subpath {json.dumps(folder)}) (literal "/dev/null"))',
            "(allow sysctl-read)",
            "(allow signal (target self))",
        )
    )
