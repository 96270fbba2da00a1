"""Ways to confine programs."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

START: Final = Path(__file__).with_name("start_inside.py")

# what -I does, but for PYTHONHASHSEED: sets of texts have the same order in every run
_PYTHON_OPTIONS: Final = ("-P", "-s", "-S", "-B", "-X", "utf8")
ENVIRONMENT: Final = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}


@final
@dataclass(frozen=True)
class Isolation:
    """How a fork server is started, and what it puts on each program.

    Attributes:
        name: as results tell it, followed by the layers.
        layers: of ``inside/confinement.py``; of these, namespaces may be missing.
        command: what starts Python, given the folder for programs' files.
        slowness: how many times as long as on this machine itself programs take; their limits of
            time are wider by that.
        wasm: what ``inside/wasm/host.py`` needs to know.
    """

    name: str
    layers: frozenset[str]
    command: Callable[[Path], list[str]]
    slowness: float = 1.0
    wasm: Mapping[str, str] = field(default_factory=dict)


def python_command(work: Path) -> list[str]:
    """The Python that runs this, without site-packages and without the user's settings."""
    return [sys.executable, *_PYTHON_OPTIONS, str(START)]


def bubblewrap_command(work: Path) -> list[str]:
    """The same in bubblewrap, which sees the library and an empty folder."""
    seen = {
        sys.base_prefix, sys.prefix, str(START.parent), os.path.dirname(os.__file__),
        os.path.dirname(os.path.realpath(sys.executable)),
        "/usr/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache",
    }  # fmt: skip
    binds = [
        part for path in sorted(seen) if os.path.exists(path) for part in ("--ro-bind", path, path)
    ]
    # not --dev: its /dev/shm would be memory that nothing limits
    devices = [
        part for name in ("null", "zero", "urandom", "random")
        for part in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
    ]  # fmt: skip
    return [
        shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session",
        *binds, *devices, "--tmpfs", str(work), "--chdir", "/", *python_command(work),
    ]  # fmt: skip


KERNEL: Final = Isolation(
    "kernel", frozenset({"landlock", "seccomp", "namespaces"}), python_command
)
BUBBLEWRAP: Final = Isolation("bubblewrap", frozenset({"seccomp"}), bubblewrap_command)
SEATBELT: Final = Isolation("seatbelt", frozenset({"seatbelt"}), python_command)
UNSAFE: Final = Isolation("unsafe", frozenset(), python_command)
