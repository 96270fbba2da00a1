"""What stands for a document in the search for duplicates: a hash, and a MinHash of its text.

The arithmetic is spelled out here rather than taken from a library, because signatures lie on disk
and must be the same in every version, process and machine; a test pins their values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

# odd multipliers whose products spread well over the upper bits: those of SplitMix64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)
_TOP_BYTE = np.uint32(24)
_WINDOWS_AT_A_TIME = 1 << 16  # of 4 bytes each, and as much again: stays in a core's cache


@dataclass(frozen=True, slots=True)
class SignatureShape:
    """How signatures are made; signatures of different shapes do not compare.

    Attributes:
        characters: in a shingle. Five of Korean are about an eojeol and a half.
        bands: of the signature; two documents are looked at together if they agree in one band.
        rows: permutations in a band. Documents of similarity J agree in one of ``b`` bands of
            ``r`` rows with probability ``1 - (1 - J^r)^b``: with 42 of 3, 1 - 1e-13 at 0.8,
            0.996 at 0.5, 0.29 at 0.2. More rows look at fewer pairs that are not alike and miss
            more that are: 32 of 4 give 1 - 5e-8, 0.87 and 0.05.
        seed: of the permutations.
    """

    characters: int = 5
    bands: int = 42
    rows: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shapes without a meaning."""
        if min(self.characters, self.bands, self.rows) < 1:
            raise ValueError(f"characters, bands and rows are at least 1: {self}")

    @property
    def permutations(self) -> int:
        """Numbers in a signature."""
        return self.bands * self.rows


@dataclass(frozen=True, slots=True, eq=False)
class Signatures:
    """The signatures of ``n`` documents, in their order.

    Attributes:
        exact: hash of the comparable text. uint64 ``[n, 2]``.
        bands: hash of each band. uint64 ``[bands, n]``.
        sketch: a byte of each permutation's minimum, enough to estimate similarity. uint8
            ``[n, permutations]``.
    """

    exact: U64
    bands: U64
    sketch: NDArray[np.uint8]

    def __len__(self) -> int:
        """Documents."""
        return len(self.exact)

    def write(self, folder: Path) -> None:
        """Write three files, equal to the byte for equal signatures, into a folder that exists."""
        np.save(folder / "exact.npy", self.exact)
        np.save(folder / "bands.npy", self.bands)
        np.save(folder / "sketch.npy", self.sketch)

    @classmethod
    def open(cls, folder: Path) -> "Signatures":
        """Map what ``write`` wrote; only the parts that are used are read.

        Three files are open as long as the arrays are there: one unit after the other, not all.

        Raises:
            OSError: a file is missing.
            ValueError: a file is none of ours.
        """
        # as plain arrays, whose parts are taken faster than those of mapped ones
        parts = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
                 for name in ("exact", "bands", "sketch"))  # fmt: skip
        return cls(*parts)


def comparable(text: str) -> str:
    r"""The text as duplicates are told by: lower case, one space between eojeols.

    Example:
        >>> comparable("  Hello,\n\n세계  ")
        'hello, 세계'
    """
    return " ".join(text.split()).lower()


def exact_hash(text: str) -> bytes:
    """Sixteen bytes that tell a comparable text from all others: XXH3 of 128 bits."""
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def shingles(text: str, characters: int = 5) -> frozenset[str]:
    """Every run of so many characters of a comparable text; a shorter text is one itself.

    Example:
        >>> sorted(shingles("가나다라마바", 5))
        ['가나다라마', '나다라마바']
    """
    count = max(len(text) - characters + 1, 1)
    return frozenset(text[i : i + characters] for i in range(count))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared shingles as a share of all, 0 to 1."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def sign(texts: Sequence[str], shape: SignatureShape) -> Signatures:
    """The signatures of texts that are comparable already (see ``comparable``)."""
    exact = np.frombuffer(b"".join(map(exact_hash, texts)), ">u8").astype(np.uint64).reshape(-1, 2)
    minima = np.full((shape.permutations, len(texts)), np.iinfo(np.uint32).max, np.uint32)
    multipliers, masks = _permutations(shape)
    for windows, starts, rows in _windows(texts, shape.characters):
        moved = np.empty_like(windows)
        for k in range(shape.permutations):
            np.multiply(windows, multipliers[k], out=moved)
            np.bitwise_xor(moved, masks[k], out=moved)
            least = np.minimum.reduceat(moved, starts)
            np.minimum(minima[k, rows], least, out=minima[k, rows])
    return Signatures(
        exact,
        _band_hashes(minima, shape),
        np.ascontiguousarray((minima >> _TOP_BYTE ^ minima).astype(np.uint8).T),
    )


def estimates(sketch: NDArray[np.uint8], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[
    np.float32
]:  # fmt: skip
    """Estimated similarity of pairs of documents; its error has a deviation of 0.045 at most.

    Args:
        sketch: see ``Signatures``, with 126 permutations for that error.
        one: document of each pair.
        other: the other.
    """
    agreeing = (sketch[one] == sketch[other]).mean(axis=1, dtype=np.float32)
    # two different minima share their byte once in 256
    result: NDArray[np.float32] = np.maximum((agreeing * 256 - 1) / 255, 0).astype(np.float32)
    return result


def _permutations(shape: SignatureShape) -> tuple[U32, U32]:
    """Odd multipliers and masks: ``(a * x) ^ m`` permutes the numbers of 32 bits."""
    drawn = _mixed(np.arange(2 * shape.permutations, dtype=np.uint64) + np.uint64(shape.seed << 20))
    halves = (drawn >> _HALF).astype(np.uint32)
    return halves[: shape.permutations] | np.uint32(1), halves[shape.permutations :]


def _mixed(numbers: U64) -> U64:
    """Each number spread over 64 bits: the steps of SplitMix64 (Steele et al. 2014)."""
    mixed = (numbers + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ mixed >> np.uint64(30)) * _SPREAD
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    result: U64 = mixed ^ mixed >> np.uint64(31)
    return result


def _windows(
    texts: Sequence[str], characters: int
) -> Iterator[tuple[U32, NDArray[np.intp], slice]]:
    """Hashes of shingles, a bounded number at a time: hashes, where each text's begin, the texts.

    A text longer than a chunk comes in several pieces.
    """
    first = 0
    while first < len(texts):
        last, size = first, 0
        while last < len(texts) and (last == first or size + len(texts[last]) < _WINDOWS_AT_A_TIME):
            size += len(texts[last]) + characters
            last += 1
        if last == first + 1:
            for start in range(0, max(len(texts[first]) - characters + 1, 1), _WINDOWS_AT_A_TIME):
                piece = texts[first][start : start + _WINDOWS_AT_A_TIME + characters - 1]
                yield _hashes_of([piece], characters), np.zeros(1, np.intp), slice(first, last)
        else:
            some = texts[first:last]
            counts = np.fromiter(map(len, some), np.intp, len(some))
            counts = np.maximum(counts - characters + 1, 1)
            starts = np.cumsum(counts) - counts
            yield _hashes_of(some, characters), starts, slice(first, last)
        first = last


def _hashes_of(texts: Sequence[str], characters: int) -> U32:
    """One hash of 32 bits for each shingle of each text, one after the other."""
    # a text that is too short for a shingle is filled up with what no text has
    joined = "\0".join(text.ljust(characters, "\0") for text in texts)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    count = len(points) - characters + 1
    hashes = points[:count].copy()
    for i in range(1, characters):
        hashes *= _GOLDEN
        hashes += points[i : i + count]
    # shingles that reach over the end of a text go
    if len(texts) > 1:
        ends = np.cumsum(np.fromiter((max(len(t), characters) + 1 for t in texts), np.intp)) - 1
        inside = np.ones(count, bool)
        for back in range(characters):
            inside[ends[:-1] - back] = False
        hashes = hashes[inside]
    hashes ^= hashes >> _HALF
    hashes *= _SPREAD
    return (hashes >> _HALF).astype(np.uint32)


def _band_hashes(minima: U32, shape: SignatureShape) -> U64:
    """One number for the rows of each band."""
    parts = minima.reshape(shape.bands, shape.rows, -1).astype(np.uint64)
    bands = np.zeros((shape.bands, minima.shape[1]), np.uint64)
    for row in range(shape.rows):
        bands = _mixed(bands ^ parts[:, row])
    return bands
