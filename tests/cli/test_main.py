"""What the command line says when a command fails."""

from types import SimpleNamespace

import pytest

from wmtp import cli
from wmtp.errors import ConfigError, LostRankError


@pytest.mark.parametrize(
    ("rank", "error", "seconds", "begins"),
    [
        ("0", ConfigError("a mistake of all"), 0, ""),
        ("1", ConfigError("a mistake of all"), 3, "rank 1: "),
        ("0", LostRankError("lost"), 6, ""),  # longer than the one that was lost needs to speak
    ],
)
def test_the_rank_that_knows_speaks_first(
    monkeypatch: pytest.MonkeyPatch, rank: str, error: Exception, seconds: int, begins: str
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert cli._wait_for_who_knows_more(error) == begins
    assert slept == [seconds]
