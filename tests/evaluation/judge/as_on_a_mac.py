"""Starts the sandbox's Python as on macOS, on Linux; three functions of macOS are stood in for.

Everything above ``ctypes`` is the product's own. ``sandbox_init`` notes how far the process has
come and what it is given, and then, if it is to, confines by Linux's own means to the paths that
the profile names. Arguments: a folder for notes, what it is to do, the sandbox's folder, and what
the sandbox's start file is given.
"""

import ctypes
import json
import os
import re
import resource
import socket
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import Any

REAL = ctypes.CDLL
TICKS_OF_NANOSECONDS = (125, 3)  # as on Apple's processors


class SystemLibrary:
    def __init__(self, notes: str, behaviour: str) -> None:
        self.notes, self.behaviour = Path(notes), behaviour

    def sandbox_init(self, encoded: bytes, flags: Any, message: Any) -> int:
        profile = encoded.decode()
        note = {
            "profile": profile,
            "folder": os.getcwd(),
            "seconds": resource.getrlimit(resource.RLIMIT_CPU)[0],
            "addresses": resource.getrlimit(resource.RLIMIT_AS)[0],
            "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
            "modules": [name for name in ("solution", "__main__") if name in sys.modules],
        }
        (self.notes / uuid.uuid4().hex).write_text(json.dumps(note))
        if self.behaviour == "refuse":
            message._obj.value = b"not today"
            return -1
        if self.behaviour == "confine":
            confine_as_told(profile)
        return 0

    def proc_pid_rusage(self, pid: int, flavor: int, place: Any) -> int:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return -1
        numerator, denominator = TICKS_OF_NANOSECONDS
        for name, value in (("user_time", stat[11]), ("system_time", stat[12])):
            seconds = int(value) / os.sysconf("SC_CLK_TCK")
            setattr(place._obj, name, int(seconds * 1e9 * denominator / numerator))
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        place._obj.footprint = int(found[1]) << 10 if found else 0
        return 0

    def mach_timebase_info(self, place: Any) -> int:
        place._obj.numerator, place._obj.denominator = TICKS_OF_NANOSECONDS
        return 0


def confine_as_told(profile: str) -> None:
    from inside.kernel import (  # type: ignore[import-not-found]
        forbid_new_privileges,
        install_filter,
        renounce_capabilities,
    )
    from inside.landlock import restrict_files  # type: ignore[import-not-found]
    from inside.seccomp import filter_program  # type: ignore[import-not-found]

    rules = dict(re.findall(r"^\(allow (file-read\*|file-write\*) (.*)\)$", profile, re.MULTILINE))
    paths = {
        operation: [json.loads(f'"{path}"') for path in re.findall(r'"((?:[^"\\]|\\.)*)"', rule)]
        for operation, rule in rules.items()
    }
    forbid_new_privileges()
    restrict_files(filter(os.path.exists, paths["file-read*"]), paths["file-write*"])
    renounce_capabilities()
    install_filter(filter_program(os.uname().machine, os.getpid()))


def library(name: Any, *args: Any, **kwargs: Any) -> Any:
    if name == "/usr/lib/libSystem.dylib":
        return SystemLibrary(*sys.argv[1:3])
    return REAL(name, *args, **kwargs)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[3])
    sysconfig.get_paths()  # reads a file that is named after the platform
    ctypes.CDLL = library  # type: ignore[assignment, misc]
    sys.platform = "darwin"
    from inside.fork_server import main  # type: ignore[import-not-found]

    for module in ("landlock", "kernel", "namespaces", "seccomp"):
        assert f"inside.{module}" not in sys.modules, f"{module} is for Linux alone"
    main(socket.socket(fileno=int(sys.argv[4])))
