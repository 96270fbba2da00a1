import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from wmtp.errors import SandboxError
from wmtp.evaluation import Judge


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    """One sandbox for all tests of this process."""
    try:
        one = Judge()
    except SandboxError as error:
        pytest.skip(f"programs cannot be confined here: {error}")
    with one:
        yield one


@contextlib.contextmanager
def busy(wanted: bool = True) -> Iterator[None]:
    """Twice as many endless programs as there are processors, or none."""
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1) if wanted else 0)
    ]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """A machine with other work."""
    with busy():
        yield
