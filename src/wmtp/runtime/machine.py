"""What kind of machine this is, in words that name no person and no place."""

import os
import platform
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

GIBIBYTE = 1024**3


@dataclass(frozen=True)
class Machine:
    """What figures depend on, and what a report may say of a machine.

    Attributes:
        chip: the maker's name of the processor.
        cores: as the system counts them.
        memory_bytes: built in.
        system: name and version, without the machine's own name.
    """

    chip: str
    cores: int
    memory_bytes: int
    system: str
    python: str


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    return Machine(
        chip=chip_name(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=system_name(),
        python=platform.python_version(),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def chip_name() -> str:
    """The processor's name, such as ``Apple M3 Max``; its family where there is no name."""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
        return found.stdout.strip() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()


def system_name() -> str:
    """``macOS 15.5 (arm64)``, or the kernel's name and version elsewhere.

    Of the version the numbers alone: who builds a kernel may have put a name behind them.
    """
    macos = platform.mac_ver()[0]
    numbers = re.match(r"[\d.]*\d", platform.release())
    version = numbers.group() if numbers else ""
    name = f"macOS {macos}" if macos else f"{platform.system()} {version}".rstrip()
    return f"{name} ({platform.machine()})"


def peak_resident_bytes() -> int:
    """Most memory that this process has held.

    On Linux from /proc: getrusage(2) gives a process that was started by a larger one the peak of
    that one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes() -> int:
    """Memory that can be had now without pushing others out."""
    return psutil.virtual_memory().available
