"""Files kept in an object store, such as S3: one run's place there, and what is brought from it.

    <paths.checkpoints.upload_to>/<run name>/
      run.yaml, metrics.jsonl
      checkpoints/step-00000100/   complete if, and only if, its manifest.json is there
      final/, average/

A store cannot rename, so the manifest is what a rename is on a disk: written last, removed first.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

import fsspec

from wmtp.checkpoints.checkpoint import (
    MANIFEST,
    checksum,
    read_manifest,
    step_of,
    write_folder,
)
from wmtp.errors import CheckpointError, ConfigError, StorageError
from wmtp.runtime.run_folder import RunFolder
from wmtp.secrets import one_line, without_secrets
from wmtp.untrusted import LARGEST_JSON

CHECKPOINTS: Final = "checkpoints"
SET_ASIDE: Final = "set-aside-manifest.json"

_PROBE = ".wmtp-probe"
_S3_OPTIONS: Final[dict[str, Any]] = {
    # a part is 50 MB, and in memory while it is sent
    "max_concurrency": 2,
    # as dead as a server can be for training to wait for it at its end
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}},
}
_OPTIONS: Final = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS, "file": {"auto_mkdir": True}}


@final
class ObjectStore:
    """The objects below one address; names are relative to it, with ``/`` between folders.

    Every method may raise StorageError, which names the address and what the store said; nothing
    is cached.
    """

    def __init__(self, url: str) -> None:
        """Name a place; nothing is asked of it yet.

        Raises:
            ConfigError: what its kind needs is not installed.
        """
        self.url = without_secrets(url.rstrip("/"))
        scheme = url.partition("://")[0]
        if scheme in ("s3", "s3a") and importlib.util.find_spec("s3fs") is None:
            raise ConfigError(
                f"paths.checkpoints.upload_to is '{self.url}', which needs the package s3fs: "
                "pip install 'wmtp[s3]'."
            )
        try:
            self._files, self._root = fsspec.core.url_to_fs(
                url.rstrip("/"), use_listings_cache=False, **_OPTIONS.get(scheme, {})
            )
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"paths.checkpoints.upload_to is '{self.url}': {one_line(error, stop=False)}. Use "
                "an address such as s3://bucket/prefix."
            ) from error

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every object below a folder with its size in bytes, by its name relative to it."""
        root = self._path(folder).rstrip("/")
        with self._named(folder, "listed"):
            try:
                found = self._files.find(root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            str(path)[len(root) :].lstrip("/"): int(entry["size"])
            for path, entry in found.items()
            if str(path).startswith(f"{root}/")
        }

    def read(self, name: str) -> bytes:
        """One small object."""
        with self._named(name, "read"):
            content = self._files.cat_file(self._path(name))
        assert isinstance(content, bytes)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Make one small object, or replace it."""
        with self._named(name, "written"):
            self._files.pipe_file(self._path(name), content)
            self._check_size(name, len(content))

    def send(self, file: Path, name: str) -> None:
        """Copy a file there; the size is compared."""
        with self._named(name, "written"):
            self._files.put_file(str(file), self._path(name))
            self._check_size(name, file.stat().st_size)

    def bring(self, name: str, file: Path) -> None:
        """Copy an object into a file, whose folder is there."""
        with self._named(name, "read"):
            self._files.get_file(self._path(name), str(file))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._named(name, "removed"):
            if self._files.exists(self._path(name)):
                self._files.rm_file(self._path(name))

    def check(self) -> None:
        """Try to list, write and remove.

        Raises:
            ConfigError: the store cannot be used; says what it said.
        """
        try:
            self.sizes(CHECKPOINTS)
            self.write(_PROBE, b"wmtp")
            self.remove(_PROBE)
        except StorageError as error:
            raise ConfigError(
                f"paths.checkpoints.upload_to cannot be used: {error} Check the address, the "
                "credentials and the network, or remove the key."
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _check_size(self, name: str, expected: int) -> None:
        found = int(self._files.info(self._path(name))["size"])
        if found != expected:
            raise OSError(f"{found} bytes arrived of {expected}")

    @contextmanager
    def _named(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # whatever a store's library raises, and they raise much that is no OSError
            place = f"{self.url}/{name}".rstrip("/")
            raise StorageError(
                f"{place} could not be {done}: {one_line(error, stop=False)}."
            ) from error


def complete_checkpoints(store: ObjectStore) -> list[str]:
    """Names of the checkpoints in the store that have all arrived, oldest step first."""
    found = {
        path.parts[0]
        for path in map(PurePosixPath, store.sizes(CHECKPOINTS))
        if path.parts[1:] == (MANIFEST,) and step_of(Path(path.parts[0])) is not None
    }
    return sorted(found, key=lambda name: step_of(Path(name)) or 0)


def send_folder(store: ObjectStore, folder: Path, name: str) -> bool:
    """Copy a complete folder there, its manifest last.

    Args:
        store: where to.
        folder: complete, and left alone meanwhile.
        name: of its copy; an older copy of that name is no longer complete once it begins.

    Returns:
        False if the same folder was there already.

    Raises:
        StorageError: a file could not be sent; the copy has no manifest.
        CheckpointError: the folder is not complete.
    """
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} has no {MANIFEST}.") from error
    place = f"{name}/{MANIFEST}"
    there = MANIFEST in store.sizes(name)
    if there and store.read(place) == manifest:
        return False
    if there:
        store.remove(place)
    _, expected = read_manifest(manifest)
    for file in expected:
        store.send(folder / file, f"{name}/{file}")
    store.write(place, manifest)
    return True


def prune(store: ObjectStore, keep_last: int) -> None:
    """Remove the oldest complete checkpoints beyond ``keep_last``, each one's manifest first.

    What an interrupted upload or removal left of older ones is removed with them.
    """
    complete = complete_checkpoints(store)
    if not complete:
        return
    kept = complete[-keep_last:]
    oldest = step_of(Path(kept[0])) or 0
    files = store.sizes(CHECKPOINTS)
    aside = {name.rpartition("/")[0] for name in files if name.endswith(f"/{SET_ASIDE}")}
    for file in sorted(files, key=lambda file: not file.endswith(f"/{MANIFEST}")):
        name = file.partition("/")[0]
        step = step_of(Path(name))
        if step is not None and step < oldest and name not in aside:
            store.remove(f"{CHECKPOINTS}/{file}")


def set_aside_there(store: ObjectStore, step: int) -> list[str]:
    """Let the copies beyond ``step`` no longer count, before training goes on from there.

    As ``checkpoint.set_aside_after`` on the disk: they belong to a course that was given up. Their
    manifests are renamed; nothing else changes.
    """
    later = [name for name in complete_checkpoints(store) if (step_of(Path(name)) or 0) > step]
    for name in later:
        place = f"{CHECKPOINTS}/{name}"
        store.write(f"{place}/{SET_ASIDE}", store.read(f"{place}/{MANIFEST}"))
        store.remove(f"{place}/{MANIFEST}")
    return later


def bring_newest(store: ObjectStore, run: RunFolder, warn: Callable[[str], None]) -> Path | None:
    """Bring the newest good checkpoint to this machine, with the run's settings and metrics.

    Every byte is compared with the manifest before the folder gets its name. A damaged copy is
    passed over with a warning.

    Returns:
        The checkpoint's folder, None if the store has no good one.

    Raises:
        StorageError: the store or this machine's disk failed.
    """
    for name in reversed(complete_checkpoints(store)):
        try:
            checkpoint = bring_folder(store, f"{CHECKPOINTS}/{name}", run.checkpoints / name)
        except CheckpointError as error:
            warn(f"{error} Not used.")
            continue
        for file in (run.settings_file, run.metrics_file):
            if not (file.exists() and file.stat().st_size) and file.name in store.sizes():
                store.bring(file.name, file)
        return checkpoint
    return None


def bring_folder(store: ObjectStore, name: str, target: Path) -> Path:
    """Copy a complete folder from the store; it appears whole or not at all.

    Raises:
        CheckpointError: the copy is damaged, or its manifest names files outside it.
        StorageError: the store or this machine's disk failed.
    """
    place = f"{store.url}/{name}"
    if store.sizes(name)[MANIFEST] > LARGEST_JSON:
        raise CheckpointError(f"{place} has a {MANIFEST} that is too large.")
    step, expected = read_manifest(store.read(f"{name}/{MANIFEST}"))
    if step is None or step_of(target) not in (None, step):
        raise CheckpointError(f"{place} has a {MANIFEST} that is none, or another step's.")
    for file in expected:
        if not _is_inside(file):
            raise CheckpointError(f"{place} has a {MANIFEST} that names {json.dumps(file)}.")

    def fill(folder: Path) -> None:
        for file, (size, sha256) in expected.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            store.bring(f"{name}/{file}", path)
            if path.stat().st_size != size or checksum(path) != sha256:
                raise CheckpointError(f"{place} is damaged: {file} differs from its checksum.")

    write_folder(target, step, fill)
    return target


def _is_inside(name: str) -> bool:
    """True of a plain relative path: ``training_state/state.json``."""
    parts = name.split("/")
    plain = not set(parts) & {"", ".", ".."} and "\\" not in name and "\0" not in name
    return plain and name != MANIFEST
