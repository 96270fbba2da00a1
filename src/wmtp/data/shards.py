"""Tokens on disk: a folder that is mapped into memory, never read whole.

    manifest.json         what this is: tokenizer, counts, sources, hash of the tokens
    tokens.bin            every document after the other, uint16 or uint32, little-endian
    docs.idx              where each document ends, in tokens, uint64
    names.jsonl           where each document came from, one JSON string per line
    wanted.u8             0 for tokens of a prompt; absent if there is no prompt
    loss_weights.f16      the data's own weights; absent if it has none
    ref_ce.<key>.f16      scores of a reference model, one file for each
    rewards.f32           a reward per document, NaN where none; absent if there is none
    groups.i32            what each document competes within, -1 for nothing; absent if nothing
    reward.<key>.f32      rewards that a reward model gave, one file for each
    tokenizer.json ...    the tokenizer's files
    bad_lines.jsonl       what was left out and why

Columns are aligned with the tokens, or with the documents if they are float32 or int32.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmtp.data.documents import BadLine, counts_in_words
from wmtp.errors import DataError
from wmtp.runtime.durable import (
    storage_errors,
    temporary_beside,
    whole_file,
)
from wmtp.untrusted import LARGEST_JSON, open_ordinary, read_bounded

MANIFEST_FILE = "manifest.json"
TOKENS_FILE = "tokens.bin"
ENDS_FILE = "docs.idx"
NAMES_FILE = "names.jsonl"
BAD_LINES_FILE = "bad_lines.jsonl"

VERSION: Final = 1
_CHUNK = 1 << 20
LONGEST_NAME_BYTES = 1 << 16

Dtype = Literal["uint16", "uint32"]
BaseColumn = Literal["wanted", "loss_weights"]
DocumentColumn = Literal["rewards", "groups"]
ColumnKind = Literal["u8", "f16"]
DocumentKind = Literal["f32", "i32"]
_COLUMN_DTYPES: dict[ColumnKind, str] = {"u8": "<u1", "f16": "<f2"}
_DOCUMENT_DTYPES: dict[DocumentKind, str] = {"f32": "<f4", "i32": "<i4"}


class OriginCount(BaseModel):
    """What a source gave of one origin and license, in the data's own words."""

    model_config = ConfigDict(frozen=True, strict=True)

    source: str | None
    license: str | None
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    text_bytes: int = Field(ge=0)


class SourceCount(BaseModel):
    """What one source gave."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: str
    split: str
    format: str
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    text_bytes: int = Field(ge=0)
    bad_lines: dict[str, int] = {}
    """Number left out for each reason."""
    passed_over: dict[str, int] = {}
    """Number of documents that could be read but were not used, for each reason."""
    origins: list[OriginCount] = []
    """What its documents say of where they are from; empty if none says anything."""


class Manifest(BaseModel):
    """``manifest.json``; keys of later versions of the program are passed over."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal["wmtp-shards"] = "wmtp-shards"
    version: int = VERSION
    tokenizer: str
    """The tokenizer's fingerprint."""
    vocab_size: int = Field(ge=1, le=2**32)
    bos_ids: list[int]
    eos_id: int
    dtype: Dtype
    tokens: int = Field(ge=1)
    documents: int = Field(ge=1)
    tokens_sha256: str
    columns: list[BaseColumn] = []
    """Columns that came with the data; scores are added later and not listed."""
    document_columns: list[DocumentColumn] = []
    """The same, of one number per document."""
    sources: list[SourceCount] = []


def open_shards(path: Path, tokenizer_fingerprint: str | None = None) -> "Shards":
    """Map a folder of shards into memory, after checking that its files fit together.

    Args:
        path: the folder.
        tokenizer_fingerprint: of the tokenizer that the model uses; None to take any.

    Raises:
        DataError: it is no such folder, was made with another tokenizer, or is damaged.
    """
    manifest = _read_manifest(path)
    if tokenizer_fingerprint not in (None, manifest.tokenizer):
        raise DataError(
            f"shards '{path}' were made with another tokenizer ({manifest.tokenizer[:12]}) than "
            f"the model's ({str(tokenizer_fingerprint)[:12]}). Prepare the data again with this "
            "model's tokenizer."
        )
    tokens = _map(path, TOKENS_FILE, np.dtype(manifest.dtype).newbyteorder("<"), manifest.tokens)
    # as signed numbers, so that searching them with int64 positions makes no copy
    ends = _map(path, ENDS_FILE, np.dtype("<i8"), manifest.documents)
    if ends[-1] != manifest.tokens or ends[0] <= 0 or not _is_increasing(ends):
        raise _damaged(path, f"{ENDS_FILE} does not divide the {manifest.tokens} tokens")
    columns = {name: _find_column(path, name, manifest.tokens) for name in manifest.columns}
    of_documents = {
        name: _find_document_column(path, name, manifest.documents)
        for name in manifest.document_columns
    }
    for name, found in (*columns.items(), *of_documents.items()):
        if found is None:
            raise _damaged(path, f"column {name} is missing")
    return Shards(
        path,
        manifest,
        tokens,
        ends,
        columns.get("wanted"),
        columns.get("loss_weights"),
        of_documents.get("rewards"),
        of_documents.get("groups"),
    )


def gather_bad_lines(shards: Iterable["Shards"], target: Path) -> None:
    """Write the bad lines of some shards, one after the other, to a file; none if there is none.

    Raises:
        StorageError: it could not be written.
    """
    found = [path for one in shards if (path := one.path / BAD_LINES_FILE).is_file()]
    with storage_errors(f"{target} could not be written"):
        if not found:
            target.unlink(missing_ok=True)
            return
        with target.open("wb") as whole:
            for path in dict.fromkeys(found):
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)


def is_shards(path: Path) -> bool:
    """Whether a folder says that it is one of shards."""
    return (path / MANIFEST_FILE).is_file()


@final
@dataclass(frozen=True, eq=False)
class Column:
    """Numbers aligned with the tokens, mapped into memory."""

    folder: Path
    file: str
    values: NDArray[Any]

    def __reduce__(self) -> tuple[Any, ...]:
        # a process that gets a copy maps the file itself, instead of being sent all of it
        return _map_column, (self.folder, self.file, self.values.dtype, len(self.values))


@final
@dataclass(frozen=True, eq=False)
class Shards:
    """An open folder of shards.

    Attributes:
        tokens: every token, as stored.
        ends: for each document the position after its last token.
        wanted: 0 where a token is of a prompt; None if there is no prompt.
        loss_weights: the data's own weights; None if it has none.
        rewards: one per document, float32, NaN where it has none; None if no document has one.
        groups: for each document the index of what it competes within, int32, -1 where nothing;
            None if no document has one.
    """

    path: Path
    manifest: Manifest
    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    wanted: Column | None
    loss_weights: Column | None
    rewards: NDArray[np.float32] | None = None
    groups: NDArray[np.int32] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return open_shards, (self.path,)  # as for columns

    def column(self, name: str) -> Column | None:
        """The column of that name, or None if there is none.

        Raises:
            DataError: its file is not as long as the tokens are.
        """
        return _find_column(self.path, name, self.manifest.tokens)

    def document_column(self, name: str) -> NDArray[Any] | None:
        """The numbers of that name, one per document, or None if there are none.

        Raises:
            DataError: its file is not as long as there are documents.
        """
        return _find_document_column(self.path, name, self.manifest.documents)

    def document_names(self, first: int, last: int) -> tuple[str, ...]:
        """Where documents ``first`` to ``last`` (included) came from; reads the file up to there.

        Raises:
            DataError: the names cannot be read.
        """
        try:
            with os.fdopen(open_ordinary(self.path / NAMES_FILE), "rb") as file:
                lines = iter(lambda: file.readline(LONGEST_NAME_BYTES), b"")
                return tuple(str(json.loads(line)) for line in islice(lines, first, last + 1))
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(self.path, f"{NAMES_FILE} cannot be read: {error}") from error

    def left_out(self, first: int = 5) -> list[str]:
        """What a person is told of what could not be read or was not used when this was made.

        Raises:
            DataError: the list of bad lines cannot be read.
        """
        left_out, passed_over = Counter[str](), Counter[str]()
        for source in self.manifest.sources:
            left_out.update(source.bad_lines)
            passed_over.update(source.passed_over)
        rest = left_out.total() - first
        more = [f"and {rest} more, all in {self.path / BAD_LINES_FILE}"] if rest > 0 else []
        return counts_in_words(left_out, [*self._bad_lines(first), *more], passed_over)

    def _bad_lines(self, count: int) -> list[str]:
        """The first of the bad lines, as they were told when they were met."""
        path = self.path / BAD_LINES_FILE
        if not path.exists():
            return []
        try:
            with os.fdopen(open_ordinary(path), "rb") as file:
                lines = [file.readline(LONGEST_NAME_BYTES) for _ in range(count)]
            return [str(BadLine(**json.loads(line))) for line in lines if line]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _damaged(self.path, f"{BAD_LINES_FILE} cannot be read: {error}") from error

    def verify(self) -> None:
        """Read all tokens and compare them with the manifest's hash.

        Raises:
            DataError: a token was changed after it was written.
        """
        digest, largest = hashlib.sha256(), 0
        for start in range(0, self.manifest.tokens, _CHUNK):
            chunk = self.tokens[start : start + _CHUNK]
            digest.update(chunk.tobytes())
            largest = max(largest, int(chunk.max()))
        if digest.hexdigest() != self.manifest.tokens_sha256:
            raise _damaged(self.path, f"{TOKENS_FILE} is not what was written")
        if largest >= self.manifest.vocab_size:
            raise _damaged(self.path, f"token {largest} is outside the vocabulary")


def add_column(
    shards: Shards, name: str, kind: ColumnKind, chunks: Iterable[NDArray[Any]]
) -> Column:
    """Write a column next to the tokens; it is there when complete, and not before.

    Args:
        shards: what the column belongs to.
        name: its name, without the ending.
        kind: how its numbers are stored.
        chunks: its values in the order of the tokens, one for each of them in total.

    Returns:
        The column, mapped into memory. One that was there is replaced.

    Raises:
        ValueError: the chunks have more or fewer values than there are tokens.
        StorageError: it could not be written.
    """
    typed = (chunk.astype(_COLUMN_DTYPES[kind]) for chunk in chunks)
    _write_column(shards.path / column_file(name, kind), typed, shards.manifest.tokens, "tokens")
    column = shards.column(name)
    assert column is not None
    return column


def add_document_column(shards: Shards, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Write a number per document, such as a reward model's; there when complete, and not before.

    Args:
        shards: what the column belongs to.
        name: its name, without the ending.
        values: one per document; real numbers are stored as float32, whole ones as int32.

    Returns:
        The values, mapped into memory. A column that was there is replaced.

    Raises:
        ValueError: there are more or fewer values than documents.
        StorageError: it could not be written.
    """
    kind: DocumentKind = "f32" if np.issubdtype(values.dtype, np.floating) else "i32"
    target = shards.path / column_file(name, kind)
    typed = values.astype(_DOCUMENT_DTYPES[kind])
    _write_column(target, [typed], shards.manifest.documents, "documents")
    column = shards.document_column(name)
    assert column is not None
    return column


def _write_column(target: Path, chunks: Iterable[NDArray[Any]], expected: int, what: str) -> None:
    temporary = temporary_beside(target)
    count = 0
    failure = f"column {target} could not be written"
    with storage_errors(failure), whole_file(target, temporary):
        with temporary.open("wb") as file:
            for chunk in chunks:
                count += len(chunk)
                chunk.tofile(file)
        if count != expected:
            raise ValueError(f"column {target.stem}: {count} values for {expected} {what}")


def column_file(name: str, kind: ColumnKind | DocumentKind) -> str:
    """File name of a column."""
    return f"{name}.{kind}"


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise DataError(
            f"'{path}' is not a folder of shards: it has no {MANIFEST_FILE}. "
            "Make one with: wmtp data prepare."
        )
    try:
        content = read_bounded(file, LARGEST_JSON)
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{MANIFEST_FILE} {key}: {first['msg']}") from error
    if manifest.version != VERSION:
        raise DataError(
            f"shards '{path}' are of version {manifest.version}, and this program reads version "
            f"{VERSION}. Prepare the data again."
        )
    return manifest


def _find_column(folder: Path, name: str, count: int) -> Column | None:
    for kind, dtype in _COLUMN_DTYPES.items():
        file = column_file(name, kind)
        if (folder / file).is_file():
            return _map_column(folder, file, np.dtype(dtype), count)
    return None


def _find_document_column(folder: Path, name: str, count: int) -> NDArray[Any] | None:
    for kind, dtype in _DOCUMENT_DTYPES.items():
        file = column_file(name, kind)
        if (folder / file).is_file():
            return _map(folder, file, np.dtype(dtype), count)
    return None


def _map_column(folder: Path, file: str, dtype: np.dtype[Any], count: int) -> Column:
    return Column(folder, file, _map(folder, file, dtype, count))


def _map(path: Path, name: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    file = path / name
    expected = count * dtype.itemsize
    try:
        found = file.stat().st_size
        if found != expected:
            raise _damaged(path, f"{name} has {found} bytes instead of {expected}")
        return np.memmap(file, dtype=dtype, mode="r", shape=(count,))
    except OSError as error:
        raise _damaged(path, f"{name} cannot be read: {error.strerror}") from error


def _is_increasing(ends: NDArray[np.int64]) -> bool:
    for start in range(0, len(ends), _CHUNK):
        chunk = ends[start : start + _CHUNK + 1]  # one more, to compare across the border
        if not bool((chunk[1:] > chunk[:-1]).all()):
            return False
    return True


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"shards '{path}' are damaged: {what}. Delete the folder and prepare it again."
    )
