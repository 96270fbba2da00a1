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
from wmtp.data.encoding import EncodedDocument
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
        ids = document.ids.astype(np.dtype(self._dtype).newbyteorder("<")).tobytes()
        self._digest.update(ids)
        self._tokens.write(ids)
        self.documents += 1
        self.tokens += len(document.ids)
        self._ends.write(np.array([self.tokens], dtype="<u8").tobytes())
        self._names.write(json.dumps(document.name).encode() + b"\n")
        self._wanted.write(document.wanted.astype("<u1").tobytes())
        self.has_prompts |= not bool(document.wanted.all())
        ones = np.ones(len(document.ids), dtype="<f2")
        weights = ones if document.weights is None else document.weights.astype("<f2")
        self._weights.write(weights.data)
        self.has_weights |= document.weights is not None
        reward = np.nan if document.reward is None else document.reward
        self._rewards.write(np.array([reward], dtype="<f4").tobytes())
        self.has_rewards |= document.reward is not None
        # a name is one group, whichever sources it stands in
        group = -1
        if document.group is not None:
            group = self.groups.setdefault(document.group, len(self.groups))
        self._groups.write(np.array([group], dtype="<i4").tobytes())

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
