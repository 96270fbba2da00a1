"""A run under a real ``torchrun``: its ranks, and whether anything of it is left."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.processes.running import Running, reaper

from .harness import Toy, wait_until

LIMIT_SECONDS = 30.0
SCRIPT = Path(__file__).with_name("spoiled_rank.py")
ROOT = Path(__file__).parents[2]
MARK = "WMTP_TEST_JOB"
SLICED = ("--set", "config.devices.fsdp.enabled=true")
BEHIND = ("--set", "config.paths.checkpoints.asynchronous=true")


@dataclass
class Job:
    """A run under ``torchrun``.

    Attributes:
        launcher: ``torchrun`` itself.
        mark: in the environment of all its processes.
    """

    launcher: Running
    mark: str

    @property
    def said(self) -> str:
        return self.launcher.said

    def rank(self, index: int) -> int:
        """The process of a rank, waited for; not a loader's worker of it."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            for pid in self.processes():
                if parent_of(pid) == self.launcher.pid and environment(pid).get("RANK") == str(
                    index
                ):
                    return pid
            time.sleep(0.01)
        raise AssertionError(f"rank {index} was never there:\n{self.said}")

    def processes(self) -> list[int]:
        """All that live."""
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if environment(pid).get(MARK) == self.mark]

    def ended(self) -> float:
        """Seconds until nothing of it is left.

        Raises:
            AssertionError: something still is after the time that is promised.
        """
        started = time.monotonic()
        while (left := self.processes()) and time.monotonic() - started < LIMIT_SECONDS:
            self.launcher.reap(0.02)
        seconds = time.monotonic() - started
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.launcher.wait(10.0)
        assert left == [], f"{len(left)} processes left after {seconds:.0f} s:\n{self.said}"
        return seconds


def environment(pid: int) -> dict[str, str]:
    """Of a process; empty if it has ended."""
    try:
        content = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in content.split("\0") if "=" in line)


def parent_of(pid: int) -> int:
    """Process that started this one; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def start(
    toy: Toy, name: str, *more: str, spoiled: int = 1, by: str = "nothing", count: int = 2
) -> Job:
    """Train by ``torchrun``, as a user does; something befalls one rank."""
    mark = uuid.uuid4().hex
    output = toy.folder / f"job-{mark}.txt"
    variables = {MARK: mark, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             "--nproc-per-node", str(count), str(SCRIPT), str(spoiled), by,
             *toy.arguments(name, *more)],
            cwd=toy.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, env=os.environ | variables,
        )  # fmt: skip

    return Job(Running(process.pid, output, reaper(process)), mark)


def seen(job: Job, text: str) -> None:
    wait_until(job.launcher, lambda: text in job.said)
    assert text in job.said, job.said


def told(job: Job, rank: int) -> str:
    """What a rank said of its fault: the first of all that was said."""
    lines = [line for line in job.said.splitlines() if re.match(r"(rank \d+: )?error:", line)]
    assert lines, job.said
    assert lines[0].startswith(f"rank {rank}: " if rank else "error:")
    return lines[0]


RAISES = '''
import os
from wmtp.weighting import Weighting

class Bad(Weighting):
    """Raises in the seventh step of one rank."""
    scope = "known"
    rank: int
    text: str

    def start_memory(self):
        import torch
        return {"seen": torch.zeros(())}

    def start_sums(self):
        import torch
        return {"seen": torch.zeros(())}

    def remember(self, memory, sums):
        memory["seen"] += sums["seen"]

    def weights(self, signals):
        signals.sums["seen"] += 1
        if os.environ["RANK"] == str(self.rank) and signals.memory["seen"] > 10:
            import torch
            raise (torch.OutOfMemoryError if "memory" in self.text else RuntimeError)(self.text)
        return signals.valid_BSH.float()
'''
