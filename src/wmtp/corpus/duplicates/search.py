"""Which documents of a corpus repeat an earlier one, and which belong together.

Documents are numbered through in the order of their units, and that order decides: the first of
two stays. A document is dropped if it is like an earlier one *that is kept*, not if a chain of
likenesses leads to one: so whatever is dropped has a kept document that it truly repeats, no two
kept documents that were looked at together are alike, and no text is lost for resembling a text
that was itself dropped. The outcome depends on the documents and their order alone, not on who
signed them or on how much memory there is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wmtp.corpus.duplicates.buckets import U64, Buckets, stored_rows
from wmtp.corpus.duplicates.keeping import keep_first
from wmtp.corpus.duplicates.outcome import Duplicates, DuplicateSettings
from wmtp.corpus.duplicates.signatures import Signatures
from wmtp.corpus.duplicates.sketches import Sketches, join_sketches
from wmtp.corpus.duplicates.texts import TextOf
from wmtp.runtime.pool import Run, here

_HIGHEST = 2**64 - 1
_MOST_DOCUMENTS = 2**32 - 1
_PAIRS_AT_A_TIME = 1 << 15
_NUMBERS_AT_A_TIME = 1 << 18
_SKETCH_FILE = "sketch"
_DIFFERENT_FILE = "different.npy"


def find_duplicates(
    units: Sequence[Path],
    text_of: TextOf,
    scratch: Path,
    settings: DuplicateSettings,
    run: Run | None = None,
) -> Duplicates:
    """Find who repeats whom among all documents of all units.

    Args:
        units: folders that ``Signatures.write`` wrote, in the order that decides who is first.
        text_of: the comparable text of a document, for ``Signatures`` numbered through over all
            units (see ``StoredTexts``).
        scratch: a folder that does not exist yet; it holds about 150 bytes for each document and
            32 for each pair that may be alike, and is gone at the end.
        settings: see there.
        run: finds pairs and compares them; None for this process. The outcome is the same.

    Raises:
        ValueError: a unit's signatures have another shape, or there are too many documents.
        OSError: a unit's files cannot be read, or the scratch folder cannot be written.
    """
    run = run or here(None)
    counts = []
    for folder in units:
        unit = Signatures.open(folder)
        if len(unit.bands) != settings.shape.bands:
            raise ValueError(f"{folder} has {len(unit.bands)} bands, not {settings.shape}")
        counts.append(len(unit))
    count = sum(counts)
    if count > _MOST_DOCUMENTS:
        raise ValueError(f"{count} documents are more than {_MOST_DOCUMENTS}")
    found = Duplicates(np.arange(count, dtype=np.uint32), np.zeros(count, np.uint8))
    if not count:
        return found
    scratch.mkdir(parents=True)
    _find_equal(units, scratch, settings, found)
    np.save(scratch / _DIFFERENT_FILE, found.percent == 0)
    join_sketches(units, scratch / _SKETCH_FILE)
    bands = (_Band(i, tuple(units), scratch, settings) for i in range(settings.shape.bands))
    with Buckets(scratch / "pairs", 2, count - 1, 64 * count, settings.memory_bytes) as pairs:
        for written in run(_find_pairs, bands):
            for rows in stored_rows(written, 2, settings.memory_bytes):
                pairs.add(rows)
            written.unlink()
        sketches = Sketches(scratch / _SKETCH_FILE, settings.shape.permutations)
        keep_first(pairs, sketches, text_of, found, settings, run)
        del sketches
    (scratch / _SKETCH_FILE).unlink()
    (scratch / _DIFFERENT_FILE).unlink()
    scratch.rmdir()
    _follow(found)
    return found


def _follow(found: Duplicates) -> None:
    """Let every link name what it stands for at the end.

    Links of kept documents lead to the lowest of their group in several steps, and a copy may
    repeat a document that was dropped itself. All of them lead to lower numbers, so that what
    stands before a piece is settled.
    """
    for start in range(0, len(found.link), _NUMBERS_AT_A_TIME):
        piece = slice(start, start + _NUMBERS_AT_A_TIME)
        kept = start + np.flatnonzero(found.percent[piece] == 0)
        while not np.array_equal(above := found.link[found.link[kept]], found.link[kept]):
            found.link[kept] = above
        dropped = start + np.flatnonzero(found.percent[piece])
        named = found.link[dropped]
        gone = found.percent[named] > 0
        found.percent[dropped[gone]] = found.percent[named[gone]]
        found.link[dropped[gone]] = found.link[named[gone]]


def _numbered(units: Sequence[Path]) -> Iterator[tuple[int, Signatures]]:
    """Each unit, open while it is looked at, with the number of its first document."""
    first = 0
    for folder in units:
        unit = Signatures.open(folder)
        yield first, unit
        first += len(unit)


def _find_equal(
    units: Sequence[Path], scratch: Path, settings: DuplicateSettings, found: Duplicates
) -> None:
    """Documents with equal hashes of 128 bits: all but the first repeat it."""
    size = 24 * len(found.link)
    with Buckets(scratch / "exact", 3, _HIGHEST, size, settings.memory_bytes) as buckets:
        for first, unit in _numbered(units):
            numbers = np.arange(first, first + len(unit), dtype=np.uint64)
            buckets.add(np.column_stack([unit.exact, numbers]))
        for rows in buckets.sorted():
            same = np.flatnonzero((rows[1:, :2] == rows[:-1, :2]).all(axis=1)) + 1
            starts = _run_starts(rows[:, :2])
            numbers = rows[:, 2].astype(np.intp)
            found.link[numbers[same]] = numbers[starts[same]]
            found.percent[numbers[same]] = Duplicates.EQUAL


def _run_starts(keys: U64) -> NDArray[np.intp]:
    """For each row of sorted keys ``[n, width]``, the first row with the same key."""
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts: NDArray[np.intp] = np.maximum.accumulate(np.where(fresh, np.arange(len(keys)), 0))
    return starts


@dataclass(frozen=True, slots=True)
class _Band:
    """A band in which pairs are looked for, by this process or another."""

    number: int
    units: tuple[Path, ...]
    scratch: Path
    settings: DuplicateSettings


def _find_pairs(_: object, band: _Band) -> Path:
    """Write the pairs that agree in a band and whose sketches say that they may be alike."""
    settings, scratch = band.settings, band.scratch
    different = np.load(scratch / _DIFFERENT_FILE, mmap_mode="r", allow_pickle=False)
    sketches = Sketches(scratch / _SKETCH_FILE, settings.shape.permutations)
    least = settings.group_threshold - settings.margin
    size, name = 16 * len(different), f"band-{band.number:03d}"
    with (
        Buckets(scratch / name, 2, _HIGHEST, size, settings.memory_bytes) as buckets,
        (scratch / f"{name}.pairs").open("xb") as file,
    ):
        for first, unit in _numbered(band.units):
            kept = np.flatnonzero(different[first : first + len(unit)])
            numbers = (kept + first).astype(np.uint64)
            buckets.add(np.column_stack([np.asarray(unit.bands[band.number])[kept], numbers]))
        for rows in buckets.sorted():
            documents: NDArray[np.intp] = rows[:, 1].astype(np.intp)
            for later, earlier in _neighbours(rows[:, :1], settings.neighbours):
                both = np.column_stack([documents[later], documents[earlier]])
                alike = sketches.estimates(*both.T) >= least
                both[alike].astype(np.uint64).tofile(file)
    return scratch / f"{name}.pairs"


def _neighbours(keys: U64, most: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows with equal keys, in pairs: each row with the ``most`` before it and the first ``most``.

    All pairs of a run that is no longer than twice ``most``; a longer run is mostly one text in
    many copies, of which the first few decide.
    """
    starts = _run_starts(keys)
    place = np.arange(len(keys)) - starts
    for distance in range(1, 2 * most + 1):
        if distance <= most:
            later = np.flatnonzero(place >= distance)
            earlier = later - distance
        else:
            later = np.flatnonzero(place >= distance)
            earlier = starts[later] + (distance - most - 1)
        if not len(later):
            return
        for start in range(0, len(later), _PAIRS_AT_A_TIME):
            yield later[start : start + _PAIRS_AT_A_TIME], earlier[start : start + _PAIRS_AT_A_TIME]
