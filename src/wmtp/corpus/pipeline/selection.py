"""Which documents stay, and on which side of the split: decided once for a whole corpus."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.corpus.duplicates import (
    Duplicates,
    DuplicateSettings,
    SplitSettings,
    StoredTexts,
    find_duplicates,
    in_validation,
)
from wmtp.runtime.durable import storage_errors, sync_file, sync_folder, temporary_name
from wmtp.runtime.pool import Run

_PARTS = ("link", "percent", "validation")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What was decided of ``n`` documents, numbered through all units.

    Attributes:
        duplicates: who repeats whom.
        validation: whether each is for validation. ``[n]``.
    """

    duplicates: Duplicates
    validation: NDArray[np.bool_]

    def kept(self, first: int, end: int, for_validation: bool) -> NDArray[np.intp]:
        """Numbers, from ``first``, of the documents between two that stay on one side."""
        piece = slice(first, end)
        is_kept = self.duplicates.percent[piece] == 0
        return np.flatnonzero(is_kept & (self.validation[piece] == for_validation))


def select(
    units: Sequence[Path],
    folder: Path,
    settings: DuplicateSettings,
    split: SplitSettings,
    run: Run,
) -> Selection:
    """Search all units for duplicates, or take what was found before.

    Args:
        units: folders in the order that decides who is first.
        folder: where the outcome is kept; it is there when it is whole.
        settings: of the search.
        split: of the split.
        run: shares the search out.

    Raises:
        StorageError: there is no room for the search.
    """
    if not folder.is_dir():
        scratch, temporary = folder.with_name(".tmp-search"), temporary_name(folder)
        with storage_errors(f"{folder} could not be written"):
            for left in (scratch, temporary):
                shutil.rmtree(left, ignore_errors=True)
            found = find_duplicates(units, StoredTexts(units), scratch, settings, run)
            validation = in_validation(found, units, split, run)
            temporary.mkdir()
            parts: tuple[NDArray[Any], ...] = (found.link, found.percent, validation)
            for name, part in zip(_PARTS, parts, strict=True):
                np.save(temporary / f"{name}.npy", part)
                sync_file(temporary / f"{name}.npy")
            temporary.replace(folder)
            sync_folder(folder.parent)
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _PARTS]
    return Selection(Duplicates(*arrays[:2]), arrays[2])
