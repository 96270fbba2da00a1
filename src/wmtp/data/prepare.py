"""Sources become shards, once for every combination of data and tokenizer."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

from wmtp.data.documents import NO_ORIGIN, BadLines, Document, Origin, TokenDocument
from wmtp.data.encoding import PackedDocuments
from wmtp.data.hub import is_to_be_fetched
from wmtp.data.parallel_encoding import Batch, BatchEncoder, encode_batches
from wmtp.data.shard_writer import ShardWriter, write_shards
from wmtp.data.shards import (
    VERSION,
    OriginCount,
    Shards,
    SourceCount,
    is_shards,
    open_shards,
)
from wmtp.data.sources import Source, list_files, read_documents, read_texts
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError, StorageError
from wmtp.untrusted import open_ordinary

Report = Callable[[str], None]

# The number of a reader goes up when it gives other documents for the same files than before, so
# that shards in the cache are not taken for what it would give now.
_READERS = {"jsonl": 3}  # 2: reward and group; 3: source and license

# Documents are tokenized together up to this many characters, which bounds memory.
_BATCH_CHARS = 1 << 20

_SAMPLE_TEXTS = 16
_SAMPLE_CHARS = 1 << 14
_MOST_ORIGINS = 1000
_OTHER_ORIGINS = Origin("(others)", "(others)")


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
    workers: int = 1,
) -> PrepareReport:
    """Tokenize sources into a new folder of shards.

    Args:
        sources: read one after the other, each in the order of its files and lines.
        tokenizer: travels with the shards.
        out: the folder; it must not exist, or be empty.
        on_progress: called now and then with the documents and tokens written so far.
        workers: processes that tokenize; the shards are the same for any number.

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
        encoder = BatchEncoder(tokenizer, _sample(sources))
        for source in sources:
            _prepare_source(source, encoder, writer, bad, on_progress, workers)
    return PrepareReport(
        path=out,
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=sum(count.text_bytes for count in writer.sources),
        bad_lines=bad.per_reason(),
        passed_over=dict(bad.passed_over),
        notes=(*bad.report(), *([encoder.note] if encoder.note else [])),
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
    encoder: BatchEncoder,
    writer: ShardWriter,
    bad: BadLines,
    on_progress: Callable[[int, int], None] | None,
    workers: int,
) -> None:
    documents, tokens, bad_before = writer.documents, writer.tokens, len(bad.lines)
    met = BadLines()  # by the reader, which is ahead
    told = offered = 0
    origins = _OriginCounts()
    for encoded in encode_batches(_in_batches(read_documents(source, met), met), encoder, workers):
        writer.add_packed(encoded.documents)
        origins.add(encoded.documents)
        bad.lines += [*met.lines[told : encoded.batch.bad_before], *encoded.bad]
        told = encoded.batch.bad_before
        offered += len(encoded.batch.documents)
        if on_progress:
            on_progress(writer.documents, writer.tokens)
    bad.lines += met.lines[told:]
    bad.passed_over.update(met.passed_over)
    if 2 * (offered - (writer.documents - documents)) > offered:
        raise DataError(
            f"data source '{source.path}': most of it cannot be used with this tokenizer:\n"
            + "\n".join(BadLines(bad.lines[bad_before:]).report())
        )
    count = SourceCount(
        path=source.path,
        split=source.split,
        format=list_files(source).format,
        documents=writer.documents - documents,
        tokens=writer.tokens - tokens,
        text_bytes=origins.text_bytes,
        bad_lines=dict(Counter(line.reason for line in bad.lines[bad_before:])),
        passed_over=dict(met.passed_over),
        origins=origins.counts(),
    )
    writer.add_source(count, bad, bad_before)


@final
class _OriginCounts:
    """Documents, tokens and bytes of each origin; a bounded number of them by name."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self._counts: dict[Origin, list[int]] = {}

    def add(self, packed: PackedDocuments) -> None:
        """Count documents."""
        self.text_bytes += int(packed.text_bytes.sum())
        tokens_of, bytes_of = packed.lengths.tolist(), packed.text_bytes.tolist()
        for origin, tokens, text_bytes in zip(packed.origins, tokens_of, bytes_of, strict=True):
            if origin not in self._counts and len(self._counts) >= _MOST_ORIGINS:
                origin = _OTHER_ORIGINS
            counts = self._counts.setdefault(origin, [0, 0, 0])
            counts[0] += 1
            counts[1] += tokens
            counts[2] += text_bytes

    def counts(self) -> list[OriginCount]:
        """By name; nothing if no document named one."""
        if not self._counts.keys() - {NO_ORIGIN}:
            return []
        in_order = sorted(self._counts, key=lambda o: (o.source or "", o.license or ""))
        return [
            OriginCount(
                source=origin.source,
                license=origin.license,
                documents=documents,
                tokens=tokens,
                text_bytes=text_bytes,
            )
            for origin in in_order
            for documents, tokens, text_bytes in [self._counts[origin]]
        ]


def _in_batches(documents: Iterable[Document | TokenDocument], met: BadLines) -> Iterator[Batch]:
    batch: list[Document | TokenDocument] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += _length(document)
        if length >= _BATCH_CHARS:
            yield Batch(tuple(batch), len(met.lines))
            batch, length = [], 0
    if batch:
        yield Batch(tuple(batch), len(met.lines))


def _length(document: Document | TokenDocument) -> int:
    if isinstance(document, TokenDocument):
        return len(document.ids)
    return sum(len(segment.text) for segment in document.segments)


def _sample(sources: Sequence[Source]) -> list[str]:
    """The first texts of each source, on which the fast encoder is tried."""
    found: list[str] = []
    for source in sources:
        with suppress(DataError):  # told when the source is read
            found += (text[:_SAMPLE_CHARS] for text in islice(read_texts(source), _SAMPLE_TEXTS))
    return found
