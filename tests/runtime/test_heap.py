"""What the C library keeps of freed memory, each time in a process of its own."""

import subprocess
import sys

import pytest

COME_AND_GO = """
import sys
import psutil
import torch
from wmtp.runtime.heap import give_freed_memory_back

MEBIBYTE = 2**20
if sys.argv[1] == "give back":
    assert give_freed_memory_back()
torch.ones(20 * MEBIBYTE // 4)  # once it was freed, glibc keeps what is smaller
large = [torch.ones(3 * MEBIBYTE // 4) for _ in range(60)]
above = torch.ones(3 * MEBIBYTE // 4)
before = psutil.Process().memory_info().rss
del large
print((before - psutil.Process().memory_info().rss) / MEBIBYTE)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
@pytest.mark.parametrize(("how", "least", "most"), [("keep", -1, 30), ("give back", 150, 190)])
def test_of_180_mebibytes_that_are_freed_the_process_gives_back(
    how: str, least: int, most: int
) -> None:
    command = [sys.executable, "-c", COME_AND_GO, how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert least <= float(done.stdout) <= most
