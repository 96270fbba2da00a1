"""Writing shards: document by document, in bounded memory, complete or not there."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from wmtp.data.documents import BadLine
from wmtp.data.encoding import EncodedDocument, PackedDocuments, pack_documents
from wmtp.data.shards import (
    BAD_LINES_FILE,
    ENDS_FILE,
    MANIFEST_FILE,
    NAMES_FILE,
    TOKENS_FILE,
    BaseColumn,
    DocumentColumn,
    Dtype,
    Manifest,
    SourceCount,
    column_file,
)
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.runtime.durable import (
    replace_file,
    storage_errors,
    sync_file,
    sync_folder,
    temporary_beside,
)

LARGEST_UINT16_VOCABULARY = 1 << 16
_WANTED_FILE = column_file("wanted", "u8")
_WEIGHTS_FILE = column_file("loss_weights", "f16")
_REWARDS_FILE = column_file("rewards", "f32")
_GROUPS_FILE = column_file("groups", "i32")
GROUP_NAMES_FILE: Final = "group_names.jsonl"
"""Names of groups in the order of their indexes; only while shards are written."""

_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class Written:
    """How far shards have been written.

    Attributes:
        documents: whole ones.
        tokens: of them.
        files: bytes of each file that belong to them.
    """

    documents: int
    tokens: int
    files: Mapping[str, int]


@contextmanager
def write_shards(path: Path, tokenizer: TextTokenizer) -> Iterator["ShardWriter"]:
    """Open a folder of shards for writing; it appears when the block ends without an error.

    Raises:
        DataError: the folder exists already and is not empty.
        StorageError: it could not be written; nothing of it is left.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"'{path}' exists already. Delete it, or name another folder.")
    temporary = temporary_beside(path)
    with storage_errors(f"shards {path} could not be written"):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            with ExitStack() as files:
                writer = ShardWriter(temporary, tokenizer, files)
                yield writer
            writer.finish()
            (temporary / GROUP_NAMES_FILE).unlink(missing_ok=True)
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


@final
class ShardWriter:
    """The open files of a folder of shards, and what has been counted so far."""

    def __init__(
        self,
        folder: Path,
        tokenizer: TextTokenizer,
        files: ExitStack,
        before: Written | None = None,
    ) -> None:
        """Begin shards, or go on with some.

        Args:
            folder: of all files; exists.
            tokenizer: travels with the shards.
            files: closes them.
            before: what belongs to the shards; whatever was written behind that is cut off.

        Raises:
            DataError: less is there than was written before.
        """
        self.folder, self.tokenizer = folder, tokenizer
        self.documents = self.tokens = 0
        self.sources: list[SourceCount] = []
        self._groups: dict[str, int] = {}
        is_small = tokenizer.vocab_size <= LARGEST_UINT16_VOCABULARY
        self._dtype: Dtype = "uint16" if is_small else "uint32"
        self._digest = hashlib.sha256()
        self._open_files = files
        self._files: dict[str, IO[bytes]] = {}
        if before is None:
            for name in (TOKENS_FILE, ENDS_FILE, NAMES_FILE):
                self._file(name)
        else:
            self._go_on(before)

    def add(self, document: EncodedDocument) -> None:
        """Append a document."""
        self.add_packed(pack_documents([document]))

    def add_packed(self, packed: PackedDocuments) -> None:
        """Append documents."""
        count, documents = len(packed.ids), len(packed.names)
        if not documents:
            return
        ids = packed.ids.astype(np.dtype(self._dtype).newbyteorder("<"))
        self._digest.update(ids.data)
        self._file(TOKENS_FILE).write(ids.data)
        ends = self.tokens + np.cumsum(packed.lengths)
        self._file(ENDS_FILE).write(ends.astype("<u8").data)
        self._file(NAMES_FILE).write(_json_lines(packed.names))
        self._add_column(_WANTED_FILE, "<u1", 1, packed.wanted, self.tokens, count)
        self._add_column(_WEIGHTS_FILE, "<f2", 1, packed.weights, self.tokens, count)
        self._add_column(_REWARDS_FILE, "<f4", np.nan, packed.rewards, self.documents, documents)
        groups = self._indexes_of(packed.groups)
        self._add_column(_GROUPS_FILE, "<i4", -1, groups, self.documents, documents)
        self.documents += documents
        self.tokens += count

    def add_bad(self, lines: Sequence[BadLine]) -> None:
        """Append what was left out."""
        if lines:
            content = "".join(line.as_json() + "\n" for line in lines)
            self._file(BAD_LINES_FILE).write(content.encode("ascii"))

    def bad_lines(self) -> list[BadLine]:
        """All that was left out so far.

        Raises:
            DataError: the list cannot be read.
        """
        if BAD_LINES_FILE not in self._files:
            return []
        self._files[BAD_LINES_FILE].flush()
        path = self.folder / BAD_LINES_FILE
        try:
            return [BadLine(**json.loads(line)) for line in path.read_bytes().splitlines()]
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"'{path}' is damaged: {error}. Delete '{self.folder}' and run again."
            ) from error

    def save(self) -> Written:
        """How far it is, once that is on the disk."""
        for name, file in self._files.items():
            file.flush()
            sync_file(self.folder / name)
        return Written(
            self.documents, self.tokens, {name: file.tell() for name, file in self._files.items()}
        )

    def finish(self) -> None:
        """Write the tokenizer, and the manifest when all else is on the disk; files are closed."""
        self.tokenizer.save(self.folder)
        for path in self.folder.iterdir():
            sync_file(path)
        columns: dict[BaseColumn, str] = {"wanted": _WANTED_FILE, "loss_weights": _WEIGHTS_FILE}
        of_documents: dict[DocumentColumn, str] = {
            "rewards": _REWARDS_FILE,
            "groups": _GROUPS_FILE,
        }
        manifest = Manifest(
            tokenizer=self.tokenizer.fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            bos_ids=list(self.tokenizer.bos_ids),
            eos_id=self.tokenizer.eos_id,
            dtype=self._dtype,
            tokens=self.tokens,
            documents=self.documents,
            tokens_sha256=self._digest.hexdigest(),
            columns=[name for name, file in columns.items() if file in self._files],
            document_columns=[name for name, file in of_documents.items() if file in self._files],
            sources=self.sources,
        )
        replace_file(
            self.folder / MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode()
        )

    def _file(self, name: str) -> IO[bytes]:
        """An open file, which is there from the first time it is asked for."""
        if name not in self._files:
            self._files[name] = self._open_files.enter_context((self.folder / name).open("wb"))
        return self._files[name]

    def _add_column(
        self,
        name: str,
        dtype: str,
        plain: float,
        values: NDArray[Any] | None,
        before: int,
        count: int,
    ) -> None:
        """Append to a column, which begins to exist where the data first say something."""
        if values is None and name not in self._files:
            return
        if name not in self._files:
            for start in range(0, before, _CHUNK):
                piece = np.full(min(_CHUNK, before - start), plain, dtype=dtype)
                self._file(name).write(piece.data)
        here = np.full(count, plain, dtype=dtype) if values is None else values.astype(dtype)
        self._file(name).write(here.data)

    def _indexes_of(self, groups: Sequence[str | None]) -> NDArray[np.int32] | None:
        """Of the documents' groups; a name is one group, whichever sources it stands in."""
        if all(name is None for name in groups):
            return None
        known = len(self._groups)
        indexes = [
            -1 if name is None else self._groups.setdefault(name, len(self._groups))
            for name in groups
        ]
        if new := list(self._groups)[known:]:
            self._file(GROUP_NAMES_FILE).write(_json_lines(new))
        return np.array(indexes, dtype=np.int32)

    def _go_on(self, before: Written) -> None:
        for name, size in before.files.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size < size:
                raise DataError(
                    f"'{path}' is damaged: it has less than was written. Delete '{self.folder}' "
                    "and run again."
                )
            file = self._open_files.enter_context(path.open("r+b"))
            if name == TOKENS_FILE:
                for start in range(0, size, _CHUNK):
                    self._digest.update(file.read(min(_CHUNK, size - start)))
            elif name == GROUP_NAMES_FILE:
                names = file.read(size).splitlines()
                self._groups = {json.loads(line): index for index, line in enumerate(names)}
            file.truncate(size)
            file.seek(size)
            self._files[name] = file
        self.documents, self.tokens = before.documents, before.tokens


def _json_lines(texts: Sequence[str]) -> bytes:
    """Each text as a JSON string on a line of its own."""
    return json.dumps(list(texts), separators=("\n", ""))[1:-1].encode() + b"\n"
