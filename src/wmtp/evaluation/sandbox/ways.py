"""Which way of confining programs is used: the first that works here, or the one asked for."""

import shutil
import sys
from collections.abc import Callable
from typing import Final

from wmtp.errors import ConfigError
from wmtp.evaluation.sandbox.isolation import BUBBLEWRAP, KERNEL, SEATBELT, Isolation
from wmtp.evaluation.sandbox.webassembly import installed, wasm_isolation

Way = Callable[[], Isolation]
"""Gives an isolation, or raises SandboxError where it lacks something."""

WAYS: Final[dict[str, Way]] = {
    "kernel": lambda: KERNEL,
    "bubblewrap": lambda: BUBBLEWRAP,
    "seatbelt": lambda: SEATBELT,
    "wasm": wasm_isolation,
}

REMEDY: Final = (
    "Use Linux 5.13 or newer with Landlock and seccomp, or install bubblewrap or wmtp[wasm]; "
    "--unsafe runs programs without protection."
)


def candidates() -> list[Way]:
    """What may work here, in the order in which it is tried; attacks on each decide."""
    here = {
        "kernel": sys.platform == "linux",
        "bubblewrap": sys.platform == "linux" and shutil.which("bwrap") is not None,
        "seatbelt": sys.platform == "darwin",
        "wasm": installed(),
    }
    return [way for name, way in WAYS.items() if here[name]]


def way_called(name: str) -> Way:
    """The way of that name.

    Raises:
        ConfigError: there is none.

    Example:
        >>> way_called("kernel")().name
        'kernel'
    """
    if name not in WAYS:
        raise ConfigError(f"isolation is {name!r}. Use {', '.join(WAYS)}.")
    return WAYS[name]
