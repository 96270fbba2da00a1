"""One of several ranks, one of which has something of its own: ``torchrun`` starts it.

    torchrun ... spoiled_rank.py RANK WHAT [arguments of wmtp]

WHAT befalls the rank of that number alone: ``nothing``; ``full disk``, none of its files may
become larger than 2 kB; ``elsewhere``, it starts in the folder ``elsewhere``.
"""

import os
import resource
import sys

from wmtp.cli import main

LARGEST_FILE = 2_000


def spoil(what: str) -> None:
    """Let it befall this process."""
    if what == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    if what == "elsewhere":
        os.chdir("elsewhere")


if __name__ == "__main__":
    rank, what = sys.argv[1:3]
    del sys.argv[1:3]
    if os.environ["RANK"] == rank:
        spoil(what)
    main()
