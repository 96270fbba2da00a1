"""Shards on their way to be made: what a killed process leaves, and the next one goes on with.

They are made in ``OUT.unfinished``, which becomes ``OUT`` when it is complete. Beside the files of
shards it holds, as long as it is not:

    .lock              held by the process that is at work
    progress.json      how far it is: what is behind that in the other files is cut off
    group_names.jsonl  names of groups
    manifest.json      written last: from then on only the folder's name is wrong

``plan.json``, which says what shards are made of, stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmtp.data.shard_plan import PLAN_FILE, ShardPlan, differences, read_plan
from wmtp.data.shard_writer import GROUP_NAMES_FILE, Written
from wmtp.data.shards import MANIFEST_FILE, OriginCount, SourceCount, is_shards
from wmtp.errors import ConfigError, DataError
from wmtp.runtime.durable import remove, replace_file, storage_errors, sync_folder
from wmtp.runtime.output_folder import first_few, hold_output_folder, refuse_other_beginning
from wmtp.untrusted import LARGEST_JSON, read_bounded

_PROGRESS_FILE: Final = "progress.json"
_LOCK_FILE: Final = ".lock"


class SourceProgress(BaseModel):
    """How far a source has been read, up to the last of its documents that is written.

    Attributes:
        documents: of shards before this source.
        tokens: the same.
        bad: lines that were left out before this source.
        file: place of the file that is being read, of a source of lines.
        offset: where in it reading goes on.
        line: number of the line there.
        read: lines that were parsed.
        unread: how many of them are bad.
        offered: documents that tokenizing was tried on.
        told: bad lines of the reader that are written.
        passed_over: documents that could be read but are not used, for each reason.
        origins: of its documents.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    documents: int = Field(0, ge=0)
    tokens: int = Field(0, ge=0)
    bad: int = Field(0, ge=0)
    file: int = Field(0, ge=0)
    offset: int = Field(0, ge=0)
    line: int = Field(1, ge=1)
    read: int = Field(0, ge=0)
    unread: int = Field(0, ge=0)
    offered: int = Field(0, ge=0)
    told: int = Field(0, ge=0)
    passed_over: dict[str, int] = {}
    origins: list[OriginCount] = []


class Progress(BaseModel):
    """``progress.json``.

    Attributes:
        documents: that are written.
        tokens: of them.
        files: bytes of each file that belong to them.
        sources: that are complete.
        current: how far the next one is.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    files: dict[str, int]
    sources: list[SourceCount]
    current: SourceProgress

    def written(self) -> Written:
        """The same for the writer."""
        return Written(self.documents, self.tokens, self.files)


@contextmanager
def hold_unfinished(out: Path, plan: ShardPlan) -> Iterator[Path | None]:
    """The folder in which shards are made, to be gone on with; None if they are complete.

    Args:
        out: what the folder will be called.
        plan: what the shards are made of.

    Raises:
        DataError: there is something else.
        ConfigError: what is there was made of something else, or another process writes it.
        StorageError: the folder could not be made.
    """
    if _is_complete(out, plan):
        yield None
        return
    if not out.name:
        raise ConfigError(f"'{out}' cannot be made anew. Name a folder in it.")
    folder = out.with_name(f"{out.name}.unfinished")
    is_ours = any((folder / name).is_file() for name in (_LOCK_FILE, PLAN_FILE, MANIFEST_FILE))
    if folder.exists() and not is_ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"'{folder}' is in the way. Delete it, or name another folder.")
    with storage_errors(f"{folder} could not be written"):
        folder.mkdir(parents=True, exist_ok=True)
    with hold_output_folder(folder / _LOCK_FILE, out):
        if _is_complete(out, plan):  # another process was faster
            remove(folder)
            yield None
            return
        if (folder / PLAN_FILE).is_file():
            refuse_other_beginning(folder, differences(read_plan(folder / PLAN_FILE), plan))
        else:
            with storage_errors(f"{folder} could not be written"):
                _remove_others(folder, {_LOCK_FILE})
                replace_file(folder / PLAN_FILE, plan.model_dump_json(indent=1).encode() + b"\n")
        yield folder


def read_progress(folder: Path) -> Progress | None:
    """How far the shards in the folder are, or None if nothing of them is certain.

    What was written behind that is removed: whole files here, their ends by who goes on.

    Raises:
        DataError: the file cannot be read.
        StorageError: a file could not be removed.
    """
    path, progress = folder / _PROGRESS_FILE, None
    if path.is_file():
        try:
            progress = Progress.model_validate_json(read_bounded(path, LARGEST_JSON))
        except (OSError, ValidationError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is damaged"
            raise DataError(
                f"'{path}' cannot be read ({what}). Delete '{folder}' and run again."
            ) from error
    written = set(progress.files) if progress else set()
    with storage_errors(f"{folder} could not be written"):
        _remove_others(folder, {_LOCK_FILE, PLAN_FILE, _PROGRESS_FILE, *written})
    return progress


def save_progress(
    folder: Path, written: Written, sources: list[SourceCount], current: SourceProgress
) -> None:
    """Note how far it is.

    Raises:
        OSError: it could not be written; what was noted before stays.
    """
    progress = Progress(**asdict(written), sources=sources, current=current)
    replace_file(folder / _PROGRESS_FILE, progress.model_dump_json().encode())


def is_finished(folder: Path) -> bool:
    """Whether all of the shards are there, and only the folder's name is wrong."""
    return is_shards(folder)


def put_in_place(folder: Path, out: Path) -> None:
    """Give a finished folder its name.

    Raises:
        OSError: it could not be renamed.
    """
    for left in (_PROGRESS_FILE, GROUP_NAMES_FILE):
        (folder / left).unlink(missing_ok=True)
    for left_by_a_kill in folder.glob(".tmp-*"):
        left_by_a_kill.unlink()
    (folder / _LOCK_FILE).unlink(missing_ok=True)  # the lock itself is held all the same
    sync_folder(folder)
    folder.replace(out)
    sync_folder(out.parent)


def _is_complete(out: Path, plan: ShardPlan) -> bool:
    """Whether the shards are there.

    Raises:
        DataError: there is something else.
        ConfigError: there are shards of something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not is_shards(out) or not (out / PLAN_FILE).is_file():
        raise DataError(f"'{out}' exists already. Delete it, or name another folder.")
    if changed := differences(read_plan(out / PLAN_FILE), plan):
        raise ConfigError(
            f"'{out}' exists already, and was made of something else: {first_few(changed)}.\n"
            "Delete it, or name another folder."
        )
    return True


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            remove(path)
