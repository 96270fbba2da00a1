"""What shards are made of: every file and setting that decides what is in them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from wmtp.data.shards import VERSION
from wmtp.data.sources import Source, list_files
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.untrusted import LARGEST_JSON, open_ordinary, read_bounded

PLAN_FILE: Final = "plan.json"

# The number of a reader goes up when it gives other documents for the same files than before, so
# that shards in the cache are not taken for what it would give now.
_READERS: Final = {"jsonl": 3}  # 2: reward and group; 3: source and license


class PlannedSource(BaseModel):
    """A source as it was found.

    Attributes:
        path: as it was given.
        split: of its documents.
        reader: format of its files and, where there was more than one, number of its reader.
        files: path and SHA-256 of each, in the order in which they are read.
        solutions: of a contest; None elsewhere.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    path: str
    split: str
    reader: str
    files: list[tuple[str, str]]
    solutions: str | None = None


class ShardPlan(BaseModel):
    """All that decides what shards hold.

    Attributes:
        version: of the format of shards.
        tokenizer: its fingerprint.
        bos_ids: what it puts in front of a document.
        eos_id: what ends one.
        sources: in the order in which they are read.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: int
    tokenizer: str
    bos_ids: list[int]
    eos_id: int
    sources: list[PlannedSource]

    def key(self) -> str:
        """A short hash of it."""
        sources: list[list[object]] = []
        for source in self.sources:
            files = [list(file) for file in source.files]
            parts: list[object] = [source.path, source.split, source.reader, files]
            sources.append(parts if source.solutions is None else [*parts, source.solutions])
        parts_of_all = {
            "version": self.version,
            "tokenizer": [self.tokenizer, self.bos_ids, self.eos_id],
            "sources": sources,
        }
        return hashlib.sha256(json.dumps(parts_of_all, sort_keys=True).encode()).hexdigest()[:16]


def make_plan(sources: Sequence[Source], tokenizer: TextTokenizer) -> ShardPlan:
    """Look at every file.

    Raises:
        DataError: a source is missing or cannot be read.
    """
    return ShardPlan(
        version=VERSION,
        tokenizer=tokenizer.fingerprint,
        bos_ids=list(tokenizer.bos_ids),
        eos_id=tokenizer.eos_id,
        sources=[_plan_source(source) for source in sources],
    )


def read_plan(path: Path) -> ShardPlan:
    """The plan that a folder was begun with.

    Raises:
        DataError: the file is none of ours.
    """
    try:
        return ShardPlan.model_validate_json(read_bounded(path, LARGEST_JSON))
    except (OSError, ValidationError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no plan of shards"
        raise DataError(
            f"'{path}' cannot be read ({what}). Delete '{path.parent}', or name another folder."
        ) from error


def differences(before: ShardPlan, now: ShardPlan) -> list[str]:
    """What has changed, in plain words; nothing if all is the same.

    Example:
        >>> plan = ShardPlan(version=1, tokenizer="a", bos_ids=[], eos_id=0, sources=[])
        >>> differences(plan, plan.model_copy(update={"tokenizer": "b"}))
        ['the tokenizer is another one']
    """
    found = []
    if before.version != now.version:
        found.append(f"shards are of version {now.version}, and were of {before.version}")
    is_same_tokenizer = (before.tokenizer, before.bos_ids, before.eos_id) == (
        now.tokenizer,
        now.bos_ids,
        now.eos_id,
    )
    if not is_same_tokenizer:
        found.append("the tokenizer is another one")
    old_paths, new_paths = ([source.path for source in plan.sources] for plan in (before, now))
    if old_paths != new_paths:
        return [*found, f"sources are {', '.join(new_paths)}, and were {', '.join(old_paths)}"]
    for old, new in zip(before.sources, now.sources, strict=True):
        found += [
            f"{what} of {new.path} is {is_now}, and was {was}"
            for what, was, is_now in (
                ("split", old.split, new.split),
                ("format", old.reader, new.reader),
                ("solutions", old.solutions, new.solutions),
            )
            if was != is_now
        ]
        old_files, new_files = dict(old.files), dict(new.files)
        for path in dict.fromkeys([*old_files, *new_files]):
            if old_files.get(path) != new_files.get(path):
                is_new, is_gone = path not in old_files, path not in new_files
                what = "is new" if is_new else "is gone" if is_gone else "has another content"
                found.append(f"file {path} {what}")
    return found


def _plan_source(source: Source) -> PlannedSource:
    found = list_files(source)
    number = _READERS.get(found.format)
    return PlannedSource(
        path=_written_out(source.path),
        split=source.split,
        reader=found.format if number is None else f"{found.format} {number}",
        files=[(_written_out(str(path)), _hash_file(path)) for path in found.files],
        solutions=source.solutions if found.format == "contest" else None,
    )


def _written_out(path: str) -> str:
    """With what is no character in a file's name as an escape, as it cannot be in JSON."""
    return path.encode("utf-8", "backslashreplace").decode()


def _hash_file(path: Path) -> str:
    try:
        with os.fdopen(open_ordinary(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"data file '{path}' cannot be read: {error.strerror}.") from error
