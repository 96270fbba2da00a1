"""Limits that the kernel keeps for each process."""

import resource
import sys
from typing import Final

_OPEN_FILES: Final = 64
_STACK_BYTES: Final = 64 << 20
_ADDRESSES_OF_PYTHON: Final = 64 << 20


def limit_process(cpu_seconds: float, memory_bytes: int, file_bytes: int, addresses: int) -> None:
    """Limits of this process and its threads, which can only be lowered further.

    Args:
        cpu_seconds: a net below the supervisor's own clock, which ends the program earlier.
        memory_bytes: of addresses, beyond those that are in use. macOS reserves hundreds of
            gigabytes for every process and takes no such limit; there the supervisor watches.
        file_bytes: of one file.
        addresses: bytes that this process has mapped already.
    """
    bounds = {
        resource.RLIMIT_CPU: int(cpu_seconds) + 2,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: _STACK_BYTES,
    }
    if sys.platform != "darwin":
        bounds[resource.RLIMIT_AS] = addresses + memory_bytes
    for which, most in bounds.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def addresses_in_use() -> int:
    """Bytes of address space that this process has mapped, or about as many as Python needs."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return _ADDRESSES_OF_PYTHON
