"""Several ranks of one run, forked: as ``torchrun`` starts them and, when one fails, ends them."""

import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .programs import Programs
from .running import Running

STOPPED = (130, 143)
SECONDS_TO_END_TOGETHER = 1.0  # all ranks of a stopped run have such a code, one a little earlier
SECONDS_TO_END_WHEN_TOLD = 30.0  # torchrun's between SIGTERM and SIGKILL


@dataclass
class Ranks:
    """Ranks that were started together.

    Attributes:
        ranks: one process each, the first rank first.
    """

    ranks: list[Running]

    @property
    def said(self) -> str:
        return "\n".join(f"-- rank {i} --\n{rank.said}" for i, rank in enumerate(self.ranks))

    def wait(self, seconds: float = 300.0) -> list[int]:
        """The exit codes; the others get SIGTERM when one fails, and SIGKILL if that is no help.

        Raises:
            AssertionError: some rank was still there after so many seconds, or had to be killed.
        """
        started, failed, told = time.monotonic(), 0.0, False
        while None in (codes := [rank.reap(0.01) for rank in self.ranks]):
            now = time.monotonic()
            failed = failed or (now if any(codes) else 0.0)
            ending = set(codes) <= {None, *STOPPED} and now - failed < SECONDS_TO_END_TOGETHER
            if failed and not told and not ending:
                self._signal(signal.SIGTERM)
                told = True
            too_late = failed and now - failed > SECONDS_TO_END_WHEN_TOLD
            if too_late or now - started > seconds:
                self._signal(signal.SIGKILL)
                for rank in self.ranks:
                    rank.reap(10.0)
                raise AssertionError(f"a rank did not end, exit codes {codes}:\n{self.said}")
        return [code for code in codes if code is not None]

    def _signal(self, number: int) -> None:
        for rank in self.ranks:
            if rank.code is None:
                os.kill(rank.pid, number)


def fork_ranks(
    programs: Programs,
    *arguments: str,
    count: int = 2,
    per_machine: int | None = None,
    spoiled: Mapping[int, Mapping[str, Any]] | None = None,
) -> Ranks:
    """Start ``wmtp`` as so many ranks.

    Args:
        programs: where.
        arguments: of wmtp.
        count: of ranks.
        per_machine: ranks that are said to share a machine; all unless given.
        spoiled: what befalls a rank of a number alone: anything that ``fork_server.become`` knows.
    """
    port, per_machine, ranks = _free_port(), per_machine or count, []
    for rank in range(count):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank % per_machine,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": per_machine,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        request = {"environment": {name: str(value) for name, value in variables.items()}}
        ranks.append(programs.fork(*arguments, **request | dict((spoiled or {}).get(rank, {}))))
    return Ranks(ranks)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
