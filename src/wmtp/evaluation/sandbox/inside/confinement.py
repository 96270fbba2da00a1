"""Everything that confines a judged program, in the order in which it is put on."""

import os
import platform
import sys
from dataclasses import dataclass, field
from typing import Any, Final, final

from .library import library_paths
from .limits import addresses_in_use, limit_process

LANDLOCK: Final = "landlock"
SECCOMP: Final = "seccomp"
NAMESPACES: Final = "namespaces"
SEATBELT: Final = "seatbelt"
WASM: Final = "wasm"

# what programs and tests are called in namespaces of their own: their filters are made beforehand
_FIRST_PIDS: Final = (1, 2, 3)


@final
@dataclass
class Confinement:
    """What a judge asked its fork server to confine programs with.

    Attributes:
        layers: of the names above.
        work: an existing folder, in or over which each program gets one of its own.
        readable: what programs may read, ``addresses`` how many bytes Python alone has mapped, and
            ``memory`` how many it uses, where that is watched; all of ``prepare``.
    """

    layers: frozenset[str]
    work: str
    readable: list[str] = field(default_factory=list)
    addresses: int = 0
    memory: int = 0

    def prepare(self) -> None:
        """Find out once what each program needs.

        Raises:
            OSError: this machine lacks a layer that was asked for.
        """
        self.measure()
        self.readable = library_paths()
        if LANDLOCK in self.layers:
            from .landlock import landlock_version

            landlock_version()
        if SECCOMP in self.layers:
            from .seccomp import filter_program

            for own_pid in _FIRST_PIDS:
                filter_program(platform.machine(), own_pid)

    def measure(self) -> None:
        """Take what this process has mapped by now for what Python alone has."""
        self.addresses = addresses_in_use()
        if sys.platform == "darwin":
            from .darwin import usage_of

            self.memory = usage_of(os.getpid())[1]

    def apply(self, limits: dict[str, Any], folder: str) -> None:
        """Confine this process for good; ``folder`` is all that it may write to.

        Raises:
            OSError: the kernel refused; nothing must be run then.
        """
        self._limit(limits)
        self.restrict(folder)
        self._filter()

    def restrict(self, folder: str) -> None:
        """Take files and rights from this process, and from those that it starts.

        Raises:
            OSError: the kernel refused; nothing must be run then.
        """
        if sys.platform == "linux":  # Landlock asks an ordinary user for this first
            from .kernel import forbid_new_privileges

            forbid_new_privileges()
        if LANDLOCK in self.layers:
            from .landlock import restrict_files

            restrict_files(self.readable, [folder, "/dev/null"])
        if SEATBELT in self.layers:
            from .seatbelt import confine

            confine(self.readable, folder)
        if sys.platform == "linux":
            from .kernel import renounce_capabilities

            renounce_capabilities()

    def apply_within(self, limits: dict[str, Any]) -> None:
        """Confine a process whose parent was restricted, and set it apart from that.

        Raises:
            OSError: the kernel refused; nothing must be run then.
        """
        if LANDLOCK in self.layers:
            from .landlock import set_apart

            set_apart()
        self.limit_and_filter(limits)

    def limit_and_filter(self, limits: dict[str, Any]) -> None:
        """Take from a process that was restricted what it needed until now.

        Raises:
            OSError: the kernel refused; nothing must be run then.
        """
        self._limit(limits)
        self._filter()

    def _limit(self, limits: dict[str, Any]) -> None:
        limit_process(
            limits["cpu_seconds"],
            limits["memory_bytes"],
            limits["largest_file_bytes"],
            self.addresses,
        )

    def _filter(self) -> None:
        if SECCOMP in self.layers:
            from .kernel import install_filter
            from .seccomp import filter_program

            install_filter(filter_program(platform.machine(), os.getpid()))
