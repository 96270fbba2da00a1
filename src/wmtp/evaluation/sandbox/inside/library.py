"""Where Python's own library is, which every program may read."""

import os
import sys
import sysconfig
from typing import Final

DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def library_paths() -> list[str]:
    """What Python's standard library is read from, and what its modules need."""
    paths = sysconfig.get_paths()
    candidates = [
        paths["stdlib"], paths["platstdlib"], os.path.dirname(os.__file__),
        *(path for path in sys.path if path.startswith(sys.base_prefix)),
        "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo",
        "/etc/ld.so.cache", "/etc/localtime", "/dev/zero", "/dev/urandom", "/dev/random",
    ]  # fmt: skip
    return sorted({path for path in candidates if os.path.exists(path)})
