import os
import subprocess
import sys
from pathlib import Path

import pytest

from wmtp.errors import ConfigError
from wmtp.runtime.lock import hold_run_lock

HOLDER = """
import sys, time
from pathlib import Path
from wmtp.runtime.lock import hold_run_lock
with hold_run_lock(Path(sys.argv[1]), "first"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as caught, hold_run_lock(path, "first"):
            pass
        assert str(caught.value) == (
            f"run 'first' is being written by process {holder.pid}. "
            "Wait for it, stop it, or choose another --run-name."
        )
        assert holder.poll() is None
        holder.kill()
        holder.wait()
    with hold_run_lock(path, "first"):
        assert path.read_text() == f"{os.getpid()}\n"


def test_lock_is_free_again_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_run_lock(tmp_path / ".lock", "first"):
        raise KeyError
    with hold_run_lock(tmp_path / ".lock", "first"):
        pass


FORKING = """
import os, signal, sys, time
from pathlib import Path
from wmtp.runtime.lock import hold_run_lock

path = Path(sys.argv[1])
reader, writer = os.pipe()
parent = os.fork()
if parent == 0:
    with hold_run_lock(path, "first"):
        worker = os.fork()
        if worker == 0:
            os.write(writer, str(os.getpid()).encode())
        time.sleep(60)
worker = int(os.read(reader, 32))
os.kill(parent, signal.SIGKILL)
os.waitpid(parent, 0)
try:
    os.kill(worker, 0)
    with hold_run_lock(path, "first"):
        print("taken")
finally:
    os.kill(worker, signal.SIGKILL)
"""


def test_forked_worker_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path / ".lock")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.stdout == "taken\n", result.stderr
