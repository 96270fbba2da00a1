"""Sketches on disk: the same estimates as in memory, and little memory whatever their number."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from wmtp.corpus.duplicates import Signatures
from wmtp.corpus.duplicates import sketches as module
from wmtp.corpus.duplicates.signatures import estimates
from wmtp.corpus.duplicates.sketches import Sketches, join_sketches

WIDTH = 128


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep pages as they like")
def test_pages_that_were_looked_at_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 32 * 1024**2 // WIDTH
    rng = np.random.default_rng(0)
    sketch = rng.integers(0, 255, (count, WIDTH), np.uint8)
    for name, part in (("a", sketch[:1000]), ("b", sketch[1000:])):
        (tmp_path / name).mkdir()
        empty = np.zeros((len(part), 2), np.uint64)
        Signatures(empty, empty.T, part).write(tmp_path / name)
    join_sketches([tmp_path / "a", tmp_path / "b"], tmp_path / "sketch")
    pairs = np.arange(0, count, 16), np.arange(count)[::-16]
    expected = estimates(sketch, *pairs)
    grown = []
    for large in (0, 1 << 30):  # the second is the negative control: nothing is let go
        monkeypatch.setattr(module, "_LARGE_BYTES", large)
        sketches = Sketches(tmp_path / "sketch", WIDTH)
        before = psutil.Process().memory_info().rss
        assert np.array_equal(sketches.estimates(*pairs), expected)
        grown.append(psutil.Process().memory_info().rss - before)
        del sketches
    assert grown[0] < 8 * 1024**2
    assert grown[1] > 24 * 1024**2
