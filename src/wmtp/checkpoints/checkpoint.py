"""Checkpoints that are complete or are not taken for one.

A checkpoint is a folder ``step-00000100`` with a ``manifest.json`` that holds the size and the
sha256 of every other file in it. It is written under another name and renamed when all of it is
on the disk, so that being killed at any moment leaves the older ones as they were.
"""

import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from wmtp.errors import CheckpointError, ConfigError
from wmtp.runtime.durable import remove, storage_errors, sync_file, sync_folder, temporary_name
from wmtp.untrusted import LARGEST_JSON, read_bounded

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1

_STEP_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"
_FILES_HASHED_AT_ONCE = 4


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` optimizer steps.

    Example:
        >>> checkpoint_name(100)
        'step-00000100'
    """
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int | None:
    """Number of steps in a checkpoint's name, None if it is not named like one."""
    match = _STEP_NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Everything in the folder that is named like a checkpoint, oldest step first, unverified."""
    if not checkpoints.is_dir():
        return []
    steps = {path: step_of(path) for path in checkpoints.iterdir()}
    return [path for _, path in sorted((s, p) for p, s in steps.items() if s is not None)]


def write_checkpoint(
    checkpoints: Path,
    step: int,
    fill: Callable[[Path], None],
    keep_last: int | None,
    in_use: Callable[[Path], bool] = lambda _: False,
) -> Path:
    """Write the checkpoint of ``step``, then remove the oldest beyond ``keep_last``.

    Args:
        checkpoints: folder of the run's checkpoints; it exists.
        step: optimizer steps done.
        fill: writes every file of the checkpoint into the empty folder that it is given.
        keep_last: checkpoints to keep, this one included, at least 1; None keeps all.
        in_use: tells which old ones must stay for now, because they are being copied.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageError: the disk refused; older checkpoints and this one's name are untouched.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, but the newest checkpoint must stay")
    target = checkpoints / checkpoint_name(step)
    write_folder(target, step, fill)
    if keep_last is not None:
        _prune(checkpoints, target, keep_last, in_use)
    return target


def write_folder(target: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Make ``target`` a complete folder with a manifest; an older one of that name is replaced.

    The order is what makes it safe: files, their fsync, manifest, fsync of the folders, rename,
    fsync of the parent.

    Raises:
        StorageError: the disk refused; the temporary folder is removed.
    """
    temporary = temporary_name(target)
    try:
        with storage_errors(f"{target} could not be written"):
            remove(temporary)
            temporary.mkdir(parents=True)
            fill(temporary)
            _write_manifest(temporary, step)
            _sync_tree(temporary)
            _put_in_place(temporary, target)
    except BaseException:
        # one that cannot be removed now is not lost sight of: the next start removes it
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if every byte is as it was written.

    Reads every file of it, 1 GB in about a second (``benchmarks/saving.py``); opens none beyond
    hashing it.
    """
    try:
        return _find_damage(folder)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def verify(folder: Path) -> None:
    """Refuse a folder that is not a complete checkpoint.

    Raises:
        CheckpointError: names the folder and what is wrong with it.
    """
    reason = find_damage(folder)
    if reason is not None:
        raise CheckpointError(
            f"checkpoint {folder} {reason}. Resume from another checkpoint, or with --resume "
            "alone from the newest good one."
        )


def newest_good(checkpoints: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """Find the newest checkpoint that is complete.

    Returns:
        The checkpoint, and each newer one that was refused with the reason, newest first.

    Raises:
        CheckpointError: none is good; names each with its reason, and how to start anew.
    """
    refused: list[tuple[Path, str]] = []
    for checkpoint in reversed(list_checkpoints(checkpoints)):
        reason = find_damage(checkpoint)
        if reason is None:
            return checkpoint, refused
        refused.append((checkpoint, reason))
    found = "; ".join(f"{path.name} {reason}" for path, reason in refused)
    raise CheckpointError(
        f"{checkpoints} has no checkpoint to resume from ({found or 'it is empty'}). "
        "Start anew with another --run-name."
    )


def remove_leftovers(place: Path) -> list[str]:
    """Remove what an interrupted write left in a folder; call it holding the run's lock.

    Returns:
        Names of the files and folders removed.
    """
    if not place.is_dir():
        return []
    leftovers = sorted(place.glob(f"{_TEMPORARY}*"))
    with storage_errors(f"leftovers in {place} could not be removed"):
        for path in leftovers:
            remove(path)
    return [path.name for path in leftovers]


def set_aside_after(checkpoints: Path, step: int) -> list[Path]:
    """Rename the checkpoints beyond ``step``, before training goes on from there.

    They belong to a course of training that was given up, or are damaged: left in place they
    would be resumed from, or counted by ``keep_last``, instead of the new ones. Nothing is
    deleted; the new names begin with ``set-aside-``.
    """
    moved = []
    with storage_errors(f"checkpoints in {checkpoints} could not be renamed"):
        for path in list_checkpoints(checkpoints):
            if (step_of(path) or 0) > step:
                target = path.with_name(f"set-aside-{path.name}")
                remove(target)
                moved.append(path.rename(target))
    return moved


def require_space(
    checkpoints: Path, checkpoint_bytes: int, keep_last: int, result_bytes: int = 0
) -> None:
    """Refuse a run whose checkpoints cannot fit: one is written before the oldest is removed.

    Args:
        checkpoints: folder of the run's checkpoints; what is there already is not needed again.
        checkpoint_bytes: of one checkpoint.
        keep_last: checkpoints that are kept.
        result_bytes: of what the run writes at its end.

    Raises:
        ConfigError: says how much is free and how much is needed.
    """
    present = sum(_size_bytes(path) for path in list_checkpoints(checkpoints))
    needed = max(0, (keep_last + 1) * checkpoint_bytes - present) + result_bytes
    free = shutil.disk_usage(checkpoints).free
    if needed > free:
        raise ConfigError(
            f"paths.checkpoints.keep_last is {keep_last}: {keep_last + 1} checkpoints of "
            f"{_gigabytes(checkpoint_bytes)} and the results of {_gigabytes(result_bytes)} need "
            f"{_gigabytes(needed)} more, but {checkpoints} has {_gigabytes(free)} free. Free "
            "space, lower keep_last, or set another base_path."
        )


def _write_manifest(folder: Path, step: int) -> None:
    found = _files_in(folder)
    sums = _checksums(found)
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sums[name]} for name, path in found.items()
    }
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _checksums(files: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of each file, several at a time: hashing lets go of Python's lock.

    Raises:
        OSError: one cannot be read.
    """
    left = list(files.items())
    sums: dict[str, str] = {}
    failures: list[OSError] = []

    def hash_what_is_left() -> None:
        with contextlib.suppress(IndexError):  # nothing is left
            while True:
                name, path = left.pop()
                try:
                    sums[name] = checksum(path)
                except OSError as error:
                    failures.append(error)

    # not a pool, whose threads the end of the process would wait for: a second signal ends it
    threads = [
        threading.Thread(target=hash_what_is_left, daemon=True)
        for _ in range(min(_FILES_HASHED_AT_ONCE, len(files)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        left.clear()
    if failures:
        raise failures[0]
    return sums


def checksum(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_in(folder: Path) -> dict[str, Path]:
    """Every entry below the folder that is not itself a folder, by its name relative to it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _sync_tree(folder: Path) -> None:
    for path in _files_in(folder).values():
        sync_file(path)
    for path in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(path)
    sync_folder(folder)


def _put_in_place(temporary: Path, target: Path) -> None:
    if target.exists():
        # a folder with content cannot be renamed over; killed between the two renames, the run
        # goes on from the checkpoint before this one
        replaced = target.with_name(f"{_TEMPORARY}replaced-{target.name}")
        remove(replaced)
        target.rename(replaced)
        temporary.rename(target)
        remove(replaced)
    else:
        temporary.rename(target)
    sync_folder(target.parent)


def _prune(checkpoints: Path, newest: Path, keep_last: int, in_use: Callable[[Path], bool]) -> None:
    others = [path for path in list_checkpoints(checkpoints) if path != newest]
    old = others[: max(0, len(others) - (keep_last - 1))]
    for path in (path for path in old if not in_use(path)):
        with storage_errors(f"the old checkpoint {path} could not be removed"):
            # renamed first: killed halfway, what is left must not look like a damaged checkpoint
            remove(path.rename(path.with_name(f"{_TEMPORARY}pruned-{path.name}")))


def _find_damage(folder: Path) -> str | None:
    if not folder.is_dir():
        return "is a file, not a folder" if folder.exists() else "does not exist"
    if not (folder / MANIFEST).is_file():
        return f"has no {MANIFEST}: it is not a checkpoint, or its writing was interrupted"
    step, expected = read_manifest(read_bounded(folder / MANIFEST, LARGEST_JSON))
    if step is None:
        return f"has a {MANIFEST} that cannot be read"
    if step_of(folder) not in (None, step):
        return f"holds step {step} under another step's name"
    found = _files_in(folder)
    del found[MANIFEST]
    for name, path in found.items():
        if path.is_symlink() or not path.is_file():
            return f"holds {name}, which is not an ordinary file"
        if name not in expected:
            return f"holds {name}, which is not in its {MANIFEST}"
    for name, (size, _) in expected.items():
        if name not in found:
            return f"lacks {name}"
        if found[name].stat().st_size != size:
            return f"is damaged: {name} has {found[name].stat().st_size} bytes, not {size}"
    sums = _checksums(found)
    for name, (_, sha256) in expected.items():
        if sums[name] != sha256:
            return f"is damaged: {name} differs from its checksum"
    return None


def read_manifest(content: bytes) -> tuple[int | None, dict[str, tuple[int, str]]]:
    """Step and (size, sha256) of each file; the step is None if this is not a manifest of ours."""
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            return None, {}
        files = manifest["files"].items()
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files}
        return int(manifest["step"]), expected
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, {}


def _size_bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*")) if path.is_dir() else 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
