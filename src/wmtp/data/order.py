"""The order of the data: a pure function of seed and position, with no state anywhere.

Position ``p`` of the endless stream of rows lies in epoch ``p // n``; each epoch is its own
permutation of all ``n`` rows. Resuming therefore needs the position alone.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


def rows_at(n_rows: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """The rows at positions ``start .. start + count - 1``, int64, epoch after epoch.

    Raises:
        ValueError: there are no rows, or a number is negative.

    Example:
        >>> two_epochs = rows_at(5, seed=1, start=0, count=10)
        >>> sorted(two_epochs[:5].tolist()), sorted(two_epochs[5:].tolist())
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
        >>> bool((rows_at(5, seed=1, start=3, count=4) == two_epochs[3:7]).all())
        True
    """
    if n_rows < 1 or seed < 0 or start < 0 or count < 0:
        raise ValueError(f"n_rows {n_rows}, seed {seed}, start {start}, count {count}")
    parts = [np.empty(0, dtype=np.int64)]
    while count > 0:
        epoch, offset = divmod(start, n_rows)
        parts.append(permutation(n_rows, seed, epoch)[offset : offset + count])
        start += len(parts[-1])
        count -= len(parts[-1])
    return np.concatenate(parts)


@lru_cache(maxsize=4)  # an epoch takes a while to sort, and is then asked for once per batch
def permutation(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """All rows in the order of one epoch: sorted by a hash of row, seed and epoch. Read-only."""
    key = np.array([_scalar_hash(_scalar_hash(seed) ^ epoch)], dtype=np.uint64)
    hashes = splitmix64(np.arange(n_rows, dtype=np.uint64) ^ key)
    order = np.argsort(hashes, kind="stable")
    order.flags.writeable = False
    return order


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each number, one to one.

    Source:
        Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; constants of
        Vigna's splitmix64.c.

    Example:
        >>> splitmix64(np.zeros(1, dtype=np.uint64))
        array([16294208416658607535], dtype=uint64)
    """
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _scalar_hash(x: int) -> int:
    return int(splitmix64(np.array([x & _MASK], dtype=np.uint64))[0])
