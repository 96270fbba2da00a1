"""Which tokens data is made of."""

from typing import Final

import numpy as np

from wmtp.data.shards import Shards

_MOST_COUNTED: Final = 50_000_000
_CHUNK: Final = 1 << 20


def frequent_tokens(shards: Shards, vocab_size: int, share: float) -> list[int]:
    """The fewest token ids that make up a share of the data, the most frequent one first.

    Of data beyond fifty million tokens, evenly spread parts are counted.
    """
    starts = range(0, shards.manifest.tokens, _CHUNK)
    every = -(-len(starts) * _CHUNK // _MOST_COUNTED)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in starts[::every]:
        counts += np.bincount(shards.tokens[start : start + _CHUNK], minlength=vocab_size)
    order = np.argsort(-counts, kind="stable")
    reached = np.cumsum(counts[order]) >= share * counts.sum()
    return [int(token) for token in order[: int(reached.argmax()) + 1]]
