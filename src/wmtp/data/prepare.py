"""Sources become shards, once for every combination of data and tokenizer."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmtp.data.documents import BadLines, Document, TokenDocument
from wmtp.data.encoding import encode_documents
from wmtp.data.hub import is_to_be_fetched
from wmtp.data.shard_writer import ShardWriter, write_shards
from wmtp.data.shards import VERSION, Shards, SourceCount, is_shards, open_shards
from wmtp.data.sources import Source, list_files, read_documents
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError, StorageError
from wmtp.untrusted import open_ordinary

Report = Callable[[str], None]

# The number of a reader goes up when it gives other documents for the same files than before, so
# that shards in the cache are not taken for what it would give now.
_READERS = {"jsonl": 2}  # 2: reward and group

# Documents are tokenized together up to this many characters, which bounds memory.
_BATCH_CHARS = 1 << 20


@dataclass(frozen=True)
class PrepareReport:
    """What was prepared, and what was left out.

    Attributes:
        path: the folder of shards.
        text_bytes: length of the documents' text in UTF-8.
        bad_lines: how many lines or files were left out for each reason.
        passed_over: how many documents could be read but were not used, for each reason.
        notes: the last two for a person, with the first few bad lines.
    """

    path: Path
    documents: int
    tokens: int
    text_bytes: int
    bad_lines: dict[str, int]
    passed_over: dict[str, int]
    notes: tuple[str, ...]

    def lines(self, name: str | None = None) -> list[str]:
        """The report for a person; it begins with the folder unless another name is given."""
        ratio = f", {self.text_bytes / self.tokens:.2f} bytes per token" if self.text_bytes else ""
        return [
            f"{name or self.path}: {self.documents:,} documents, {self.tokens:,} tokens from "
            f"{self.text_bytes:,} bytes{ratio}",
            *self.notes,
        ]


def prepare(
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    out: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Tokenize sources into a new folder of shards.

    Args:
        sources: read one after the other, each in the order of its files and lines.
        tokenizer: travels with the shards.
        out: the folder; it must not exist, or be empty.
        on_progress: called now and then with the documents and tokens written so far.

    Raises:
        DataError: ``out`` exists, a source is a folder of shards, or is missing, mostly bad or
            empty.
        StorageError: the folder could not be written; nothing of it is left.
    """
    for source in sources:
        if is_shards(Path(source.path)):
            raise DataError(f"data source '{source.path}' is a folder of shards already.")
    bad = BadLines()
    with write_shards(out, tokenizer) as writer:
        for source in sources:
            _prepare_source(source, tokenizer, writer, bad, on_progress)
    return PrepareReport(
        path=out,
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=sum(count.text_bytes for count in writer.sources),
        bad_lines=bad.per_reason(),
        passed_over=dict(bad.passed_over),
        notes=tuple(bad.report()),
    )


def prepare_cached(
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    cache_root: Path,
    report: Report | None = None,
) -> Shards:
    """Shards of the sources, made now or found in the cache.

    The folder in the cache is named by a hash of the tokenizer and of the content of every file,
    so that a changed file makes new shards. A single source that is a folder of shards is used
    as it is.

    Args:
        sources: what to read.
        tokenizer: what the model reads.
        cache_root: folder of all cached shards.
        report: takes a few lines about what was made and left out.

    Raises:
        DataError: a source is missing, mostly bad or empty, or is of another tokenizer.
        StorageError: the cache could not be written.
    """
    shard_folders = [source for source in sources if is_shards(Path(source.path))]
    if shard_folders:
        return _open_alone(shard_folders[0], sources, tokenizer)
    for source in sources:
        if report and is_to_be_fetched(source.path):
            report(f"fetching {source.path} from the Hugging Face hub")
    folder = cache_root / cache_key(sources, tokenizer)
    if is_shards(folder):
        if report and (left_out := open_shards(folder).left_out()):
            report("\n".join([f"{_names(sources)}, tokenized before:", *left_out]))
    else:
        if report:
            report(f"tokenizing {_names(sources)}")
        try:
            made = prepare(sources, tokenizer, folder)
        except StorageError:
            if not is_shards(folder):  # else another process was faster
                raise
        else:
            if report:
                report("\n".join(made.lines(_names(sources))))
    return open_shards(folder, tokenizer.fingerprint)


def cache_key(sources: Sequence[Source], tokenizer: TextTokenizer) -> str:
    """Hash of all that decides what the shards hold.

    Raises:
        DataError: a source is missing or cannot be read.
    """
    parts = {
        "version": VERSION,
        "tokenizer": [tokenizer.fingerprint, list(tokenizer.bos_ids), tokenizer.eos_id],
        "sources": [_describe_source(source) for source in sources],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _describe_source(source: Source) -> list[object]:
    found = list_files(source)
    files = [[str(path), _hash_file(path)] for path in found.files]
    reader = (
        f"{found.format} {_READERS[found.format]}" if found.format in _READERS else found.format
    )
    parts: list[object] = [source.path, source.split, reader, files]
    return [*parts, source.solutions] if found.format == "contest" else parts


def _hash_file(path: Path) -> str:
    try:
        with os.fdopen(open_ordinary(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"data file '{path}' cannot be read: {error.strerror}.") from error


def _names(sources: Sequence[Source]) -> str:
    """The sources for a person, such as ``mbpp.jsonl (train)``."""
    return ", ".join(
        source.path if source.split == "all" else f"{source.path} ({source.split})"
        for source in sources
    )


def _open_alone(source: Source, sources: Sequence[Source], tokenizer: TextTokenizer) -> Shards:
    if len(sources) > 1:
        raise DataError(
            f"data source '{source.path}' is a folder of shards, and must be the only source. "
            "Prepare all of them together with: wmtp data prepare."
        )
    if source.split != "all" or source.format != "auto":
        raise DataError(
            f"data source '{source.path}' is a folder of shards, which has no split and no format "
            "to choose. Prepare each split by itself with: wmtp data prepare --split."
        )
    return open_shards(Path(source.path), tokenizer.fingerprint)


def _prepare_source(
    source: Source,
    tokenizer: TextTokenizer,
    writer: ShardWriter,
    bad: BadLines,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    documents, tokens, bad_before = writer.documents, writer.tokens, len(bad.lines)
    passed_before = bad.passed_over.copy()
    text_bytes = offered = 0
    for batch in _in_batches(read_documents(source, bad)):
        for encoded in encode_documents(tokenizer, batch, bad):
            writer.add(encoded)
        offered += len(batch)
        text_bytes += sum(map(_text_bytes, batch))
        if on_progress:
            on_progress(writer.documents, writer.tokens)
    if 2 * (offered - (writer.documents - documents)) > offered:
        raise DataError(
            f"data source '{source.path}': most of it cannot be used with this tokenizer:\n"
            + "\n".join(BadLines(bad.lines[bad_before:]).report())
        )
    reasons = Counter(line.reason for line in bad.lines[bad_before:])
    count = SourceCount(
        path=source.path,
        split=source.split,
        format=list_files(source).format,
        documents=writer.documents - documents,
        tokens=writer.tokens - tokens,
        text_bytes=text_bytes,
        bad_lines=dict(reasons),
        passed_over=dict(bad.passed_over - passed_before),
    )
    writer.add_source(count, bad, bad_before)


def _in_batches(
    documents: Iterable[Document | TokenDocument],
) -> Iterator[list[Document | TokenDocument]]:
    batch: list[Document | TokenDocument] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += _length(document)
        if length >= _BATCH_CHARS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _length(document: Document | TokenDocument) -> int:
    if isinstance(document, TokenDocument):
        return len(document.ids)
    return sum(len(segment.text) for segment in document.segments)


def _text_bytes(document: Document | TokenDocument) -> int:
    if isinstance(document, TokenDocument):
        return 0
    return sum(len(segment.text.encode()) for segment in document.segments)
