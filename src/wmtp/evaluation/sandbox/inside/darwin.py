"""Calls of macOS that Python has no function for; nothing here is looked up before it is called."""

import ctypes
import os
from typing import Any, Final

_LIBRARY: Final = "/usr/lib/libSystem.dylib"
_FLAVOR: Final = 2
_NANOSECONDS: Final = 1e-9


class _Usage(ctypes.Structure):
    """rusage_info_v2 of <sys/resource.h>; times are in the processor's own ticks."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("before_footprint", ctypes.c_uint64 * 5),
        ("footprint", ctypes.c_uint64),
        ("after_footprint", ctypes.c_uint64 * 10),
    )


class _Timebase(ctypes.Structure):
    _fields_ = (("numerator", ctypes.c_uint32), ("denominator", ctypes.c_uint32))


def _library() -> Any:
    return ctypes.CDLL(_LIBRARY, use_errno=True)


def enter_sandbox(profile: str) -> None:
    """Confine this process by a profile, for good.

    Raises:
        OSError: the system refused.

    Source:
        sandbox_init(3), deprecated and in use by browsers.
    """
    message = ctypes.c_char_p()
    encoded = os.fsencode(profile)
    if _library().sandbox_init(encoded, ctypes.c_uint64(0), ctypes.byref(message)) != 0:
        raise OSError(f"sandbox_init: {(message.value or b'').decode(errors='replace')}")


def usage_of(pid: int) -> tuple[float, int]:
    """Processor time in seconds, and bytes of memory, of a process of this user.

    Raises:
        OSError: there is none.

    Source:
        libproc.h and mach_time.h of the macOS SDK.
    """
    library, used, base = _library(), _Usage(), _Timebase()
    if library.proc_pid_rusage(pid, _FLAVOR, ctypes.byref(used)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"proc_pid_rusage({pid}): {os.strerror(number)}")
    library.mach_timebase_info(ctypes.byref(base))
    ticks = used.user_time + used.system_time
    return ticks * base.numerator / base.denominator * _NANOSECONDS, used.footprint
