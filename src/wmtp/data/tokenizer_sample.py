"""Which documents a tokenizer is trained on: as many bytes from each source, as far as it has them.

A hash of each text decides, so that neither the order of the files nor a second reading changes
the sample, and equal texts are in it or out of it together. The corpus is read twice and never
held.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import DataError

_BUCKETS = 1 << 12

NamedTexts = Iterable[tuple[str, str]]
"""Pairs of a source's name and a text."""


@dataclass(frozen=True)
class SourceShare:
    """What a source has, and what of it is in the sample; bytes are those of UTF-8."""

    name: str
    documents: int
    text_bytes: int
    sampled_documents: int
    sampled_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.sampled_documents:,} of {self.documents:,} documents, "
            f"{self.sampled_bytes:,} of {self.text_bytes:,} bytes"
        )

    def as_json(self) -> dict[str, str | int]:
        """For the record that travels with the tokenizer."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """The choice of documents.

    Attributes:
        shares: of each source, in the order in which they were first met.
    """

    shares: tuple[SourceShare, ...]
    seed: int
    _below: Mapping[str, int]

    def texts(self, read: NamedTexts) -> Iterator[str]:
        """The texts of the sample, of a second reading."""
        for name, text in read:
            if _bucket(text, self.seed) < self._below.get(name, 0):
                yield text


def choose_sample(
    read: Callable[[], NamedTexts], sample_bytes: int | None, seed: int = 0
) -> Sample:
    """Choose documents for a sample of about so many bytes.

    Args:
        read: gives all texts, the same ones each time it is called.
        sample_bytes: how many to take; a source's share is met to about one in 4,096 of its
            bytes, or to one document. None for all.
        seed: another one, other documents.

    Raises:
        DataError: ``sample_bytes`` is below 1, or there is no text.
    """
    if sample_bytes is not None and sample_bytes < 1:
        raise DataError(f"sample_bytes is {sample_bytes}, below 1.")
    sizes: dict[str, NDArray[np.int64]] = {}
    for name, text in read():
        counts_2K = sizes.setdefault(name, np.zeros((2, _BUCKETS), dtype=np.int64))
        counts_2K[:, _bucket(text, seed)] += 1, len(text.encode())
    if not sizes:
        raise DataError("there is no text to train a tokenizer on.")
    totals = {name: int(counts_2K[1].sum()) for name, counts_2K in sizes.items()}
    wanted = totals if sample_bytes is None else share_equally(totals, sample_bytes)
    below, shares = {}, []
    for name, counts_2K in sizes.items():
        whole = wanted[name] >= totals[name]
        below[name] = _BUCKETS if whole else _nearest(np.cumsum(counts_2K[1]), wanted[name])
        documents, text_bytes = counts_2K[:, : below[name]].sum(axis=1).tolist()
        shares.append(
            SourceShare(name, int(counts_2K[0].sum()), totals[name], documents, text_bytes)
        )
    return Sample(tuple(shares), seed, below)


def share_equally(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """As much from each as from every other, and all of those that have less.

    Example:
        >>> share_equally({"reviews": 45, "manuals": 20, "law": 1}, 31)
        {'reviews': 15, 'manuals': 15, 'law': 1}
    """
    shares, left = {}, total
    smallest_first = sorted(sizes, key=lambda name: (sizes[name], name))
    for done, name in enumerate(smallest_first):
        shares[name] = min(sizes[name], left // (len(sizes) - done))
        left -= shares[name]
    return {name: shares[name] for name in sizes}


def _nearest(cumulated: NDArray[np.int64], wanted: int) -> int:
    """How many buckets come nearest to so many bytes; at least up to the first document."""
    first = int(np.searchsorted(cumulated, 1)) + 1
    best = int(np.argmin(np.abs(cumulated - wanted))) + 1
    return max(first, best)


def _bucket(text: str, seed: int) -> int:
    digest = hashlib.blake2b(
        text.encode("utf-8"), digest_size=8, key=str(seed).encode(), person=b"wmtp sample"
    ).digest()
    return int.from_bytes(digest, "big") * _BUCKETS >> 64
