"""Writing shards: document by document, in bounded memory, complete or not there."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, final

import numpy as np

from wmtp.data.documents import BadLines
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
from wmtp.runtime.durable import storage_errors, sync_file, sync_folder, temporary_beside

LARGEST_UINT16_VOCABULARY = 1 << 16
_WANTED_FILE = column_file("wanted", "u8")
_WEIGHTS_FILE = column_file("loss_weights", "f16")
_REWARDS_FILE = column_file("rewards", "f32")
_GROUPS_FILE = column_file("groups", "i32")


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
            for file in temporary.iterdir():
                sync_file(file)
            sync_folder(temporary)
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


@final
class ShardWriter:
    """The open files of a folder of shards, and what has been counted so far."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer, files: ExitStack) -> None:
        def create(name: str) -> IO[bytes]:
            return files.enter_context((folder / name).open("wb"))

        self.folder, self.tokenizer = folder, tokenizer
        self.documents = self.tokens = 0
        self.has_prompts = self.has_weights = self.has_rewards = False
        self.groups: dict[str, int] = {}
        self.sources: list[SourceCount] = []
        is_small = tokenizer.vocab_size <= LARGEST_UINT16_VOCABULARY
        self._dtype: Dtype = "uint16" if is_small else "uint32"
        self._digest = hashlib.sha256()
        self._tokens, self._ends, self._names, self._wanted, self._weights = map(
            create, (TOKENS_FILE, ENDS_FILE, NAMES_FILE, _WANTED_FILE, _WEIGHTS_FILE)
        )
        self._rewards, self._groups = map(create, (_REWARDS_FILE, _GROUPS_FILE))

    def add(self, document: EncodedDocument) -> None:
        """Append a document."""
        self.add_packed(pack_documents([document]))

    def add_packed(self, packed: PackedDocuments) -> None:
        """Append documents."""
        count = len(packed.ids)
        ids = packed.ids.astype(np.dtype(self._dtype).newbyteorder("<"))
        self._digest.update(ids.data)
        self._tokens.write(ids.data)
        ends = self.tokens + np.cumsum(packed.lengths)
        self._ends.write(ends.astype("<u8").data)
        self.documents += len(packed.names)
        self.tokens += count
        self._names.writelines(json.dumps(name).encode() + b"\n" for name in packed.names)
        wanted = np.ones(count, dtype="<u1") if packed.wanted is None else packed.wanted
        self._wanted.write(wanted.astype("<u1").data)
        self.has_prompts |= packed.wanted is not None
        ones = np.ones(count, dtype="<f2")
        weights = ones if packed.weights is None else packed.weights.astype("<f2")
        self._weights.write(weights.data)
        self.has_weights |= packed.weights is not None
        rewards = packed.rewards
        if rewards is None:
            rewards = np.full(len(packed.names), np.nan, dtype=np.float32)
        self._rewards.write(rewards.astype("<f4").data)
        self.has_rewards |= packed.rewards is not None
        # a name is one group, whichever sources it stands in
        groups = [
            -1 if name is None else self.groups.setdefault(name, len(self.groups))
            for name in packed.groups
        ]
        self._groups.write(np.array(groups, dtype="<i4").data)

    def add_source(self, count: SourceCount, bad: BadLines, first_bad: int) -> None:
        """Note what a source gave, after its documents."""
        self.sources.append(count)
        if lines := bad.lines[first_bad:]:
            with (self.folder / BAD_LINES_FILE).open("a", encoding="ascii") as file:
                file.writelines(line.as_json() + "\n" for line in lines)

    def finish(self) -> None:
        """Drop columns that say nothing, and write the tokenizer and the manifest."""
        columns: dict[BaseColumn, bool] = {
            "wanted": self.has_prompts,
            "loss_weights": self.has_weights,
        }
        document_columns: dict[DocumentColumn, bool] = {
            "rewards": self.has_rewards,
            "groups": bool(self.groups),
        }
        files = (_WANTED_FILE, _WEIGHTS_FILE, _REWARDS_FILE, _GROUPS_FILE)
        kept = (*columns.values(), *document_columns.values())
        for file, is_kept in zip(files, kept, strict=True):
            if not is_kept:
                (self.folder / file).unlink()
        self.tokenizer.save(self.folder)
        manifest = Manifest(
            tokenizer=self.tokenizer.fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            bos_ids=list(self.tokenizer.bos_ids),
            eos_id=self.tokenizer.eos_id,
            dtype=self._dtype,
            tokens=self.tokens,
            documents=self.documents,
            tokens_sha256=self._digest.hexdigest(),
            columns=[name for name, is_kept in columns.items() if is_kept],
            document_columns=[name for name, is_kept in document_columns.items() if is_kept],
            sources=self.sources,
        )
        (self.folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
