from pathlib import Path

import numpy as np
import pytest

from wmtp.data import frequency
from wmtp.data.frequency import frequent_tokens


class Manifest:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class Counted:
    def __init__(self, *tokens: int) -> None:
        self.tokens = np.array(tokens, dtype=np.uint16)
        self.manifest = Manifest(len(tokens))


def test_the_fewest_tokens_that_cover_a_share() -> None:
    """Ten tokens: five 7s, three 2s, one 0 and one 9."""
    shards = Counted(7, 2, 7, 9, 7, 2, 0, 7, 2, 7)
    assert frequent_tokens(shards, 12, 0.5) == [7]  # type: ignore[arg-type]
    assert frequent_tokens(shards, 12, 0.8) == [7, 2]  # type: ignore[arg-type]
    assert frequent_tokens(shards, 12, 0.9) == [7, 2, 0]  # type: ignore[arg-type]
    assert frequent_tokens(shards, 12, 1.0) == [7, 2, 0, 9]  # type: ignore[arg-type]


def test_of_much_data_parts_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(frequency, "_CHUNK", 2)
    monkeypatch.setattr(frequency, "_MOST_COUNTED", 4)
    shards = Counted(1, 1, 5, 5, 1, 3, 5, 5)  # every other chunk: 1 1 1 3
    assert frequent_tokens(shards, 8, 1.0) == [1, 3]  # type: ignore[arg-type]
