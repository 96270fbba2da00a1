"""Sources become shards, once for every combination of data and tokenizer."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np

from wmtp.data.documents import (
    NO_ORIGIN,
    BadLine,
    BadLines,
    Document,
    Origin,
    TokenDocument,
)
from wmtp.data.encoding import PackedDocuments
from wmtp.data.hub import is_to_be_fetched
from wmtp.data.parallel_encoding import Batch, BatchEncoder, Lines, encode_batches
from wmtp.data.shard_plan import make_plan
from wmtp.data.shard_writer import ShardWriter, write_shards
from wmtp.data.shards import (
    OriginCount,
    Shards,
    SourceCount,
    is_shards,
    open_shards,
)
from wmtp.data.sources import (
    RefusedSourceError,
    Source,
    SourceFiles,
    check_reading,
    list_files,
    read_documents,
    read_texts,
)
from wmtp.data.text_files import read_blocks
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.unfinished_shards import (
    Progress,
    SourceProgress,
    hold_unfinished,
    is_finished,
    put_in_place,
    read_progress,
    save_progress,
)
from wmtp.errors import DataError, StorageError
from wmtp.runtime.durable import storage_errors

Report = Callable[[str], None]

# Documents are tokenized together up to this many characters, which bounds memory.
_BATCH_CHARS = 1 << 20

# What a kill costs at most.
_SECONDS_BETWEEN_SAVES = 5.0

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
    report: Report | None = None,
) -> PrepareReport:
    """Tokenize sources into a new folder of shards, or go on where that was stopped.

    What is written depends on the sources and the tokenizer alone: not on the number of workers,
    nor on how often it was stopped. Until it is complete the folder is called ``OUT.unfinished``.

    Args:
        sources: read one after the other, each in the order of its files and lines.
        tokenizer: travels with the shards.
        out: the folder; it must not exist, be empty, or hold what would be made.
        on_progress: called now and then with the documents and tokens written so far.
        workers: processes that tokenize; the shards are the same for any number.
        report: is told where it goes on, or that there is nothing to do.

    Raises:
        DataError: ``out`` is something else, a source is a folder of shards, or is missing, mostly
            bad or empty.
        ConfigError: what is there was made of something else, or another process writes it.
        StorageError: the folder could not be written; running again goes on there.
    """
    for source in sources:
        if is_shards(Path(source.path)):
            raise DataError(f"data source '{source.path}' is a folder of shards already.")
    plan = make_plan(sources, tokenizer)
    with hold_unfinished(out, plan) as folder:
        if folder is None:
            if report:
                report(f"{out} is complete: nothing to do")
            return _report_of(open_shards(out))
        failure = f"shards {out} could not be written"
        if is_finished(folder):
            with storage_errors(failure):
                put_in_place(folder, out)
            return _report_of(open_shards(out))
        progress = read_progress(folder)
        if progress and report:
            report(
                f"going on with {folder}: {progress.documents:,} documents, {progress.tokens:,} "
                "tokens are there"
            )
        with storage_errors(failure):
            with ExitStack() as files:
                written = progress.written() if progress else None
                writer = ShardWriter(folder, tokenizer, files, written)
                made = _Making(writer, sources, workers, on_progress, progress)
                try:
                    made.read_all(save_to=folder)
                except RefusedSourceError:  # nobody can go on with these sources
                    shutil.rmtree(folder)
                    raise
            writer.finish()
            put_in_place(folder, out)
    return _report(out, writer, made)


def _report(path: Path, writer: ShardWriter, made: "_Making") -> PrepareReport:
    return PrepareReport(
        path=path,
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=sum(count.text_bytes for count in writer.sources),
        bad_lines=made.bad.per_reason(),
        passed_over=dict(made.bad.passed_over),
        notes=(*made.bad.report(), *([made.note] if made.note else [])),
    )


def _report_of(shards: Shards) -> PrepareReport:
    """As it was told when the shards were made."""
    bad_lines, passed_over = Counter[str](), Counter[str]()
    for source in shards.manifest.sources:
        bad_lines.update(source.bad_lines)
        passed_over.update(source.passed_over)
    return PrepareReport(
        path=shards.path,
        documents=shards.manifest.documents,
        tokens=shards.manifest.tokens,
        text_bytes=sum(source.text_bytes for source in shards.manifest.sources),
        bad_lines=dict(bad_lines.most_common()),
        passed_over=dict(passed_over),
        notes=tuple(shards.left_out()),
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
            made = _prepare_at_once(sources, tokenizer, folder)
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
    return make_plan(sources, tokenizer).key()


def _prepare_at_once(
    sources: Sequence[Source], tokenizer: TextTokenizer, out: Path
) -> PrepareReport:
    """Shards in a folder of the cache, which several processes may be making at a time."""
    with write_shards(out, tokenizer) as writer:
        made = _Making(writer, sources, workers=1)
        made.read_all()
    return _report(out, writer, made)


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


@final
class _Making:
    """Shards of sources, from the first document or from where it was stopped.

    Attributes:
        bad: all that was left out.
        note: why tokenizing takes long, or None.
    """

    def __init__(
        self,
        writer: ShardWriter,
        sources: Sequence[Source],
        workers: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Go on behind ``progress``, which is what the writer has."""
        self._writer, self._sources, self._workers = writer, sources, workers
        self._on_progress = on_progress
        self._encoder = BatchEncoder(writer.tokenizer, _sample(sources))
        self._current = progress.current if progress else SourceProgress()
        self.note = self._encoder.note
        self.bad = BadLines(writer.bad_lines())
        writer.sources += progress.sources if progress else []
        for count in writer.sources:
            self.bad.passed_over.update(count.passed_over)

    def read_all(self, save_to: Path | None = None) -> None:
        """Write all documents that are not written yet.

        Args:
            save_to: folder that is told how far it is, now and then.
        """
        for source in self._sources[len(self._writer.sources) :]:
            self._read(source, self._current, save_to)
            self._current = SourceProgress(
                documents=self._writer.documents,
                tokens=self._writer.tokens,
                bad=len(self.bad.lines),
            )

    def _read(self, source: Source, at: SourceProgress, save_to: Path | None) -> None:
        writer, found, met = self._writer, list_files(source), BadLines()
        origins = _OriginCounts(at.origins)
        batches = (
            _blocks(found, at)
            if found.format == "jsonl"
            else _in_batches(islice(read_documents(source, met), at.offered, None), met)
        )
        saved = time.monotonic()
        for batch, encoded in encode_batches(batches, self._encoder, self._workers):
            writer.add_packed(encoded.documents)
            origins.add(encoded.documents)
            self._leave_out([*met.lines[at.told : batch.bad_before], *encoded.bad])
            at.told = max(at.told, batch.bad_before)
            at.read += encoded.read
            at.unread += encoded.unread
            at.offered += encoded.offered
            if isinstance(batch.work, Lines):
                at.file, at.offset, at.line = (
                    batch.file,
                    batch.work.block.end,
                    batch.work.block.next,
                )
            if self._on_progress:
                self._on_progress(writer.documents, writer.tokens)
            if save_to and time.monotonic() - saved >= _SECONDS_BETWEEN_SAVES:
                at.origins = origins.counts(always=True)
                save_progress(save_to, writer.save(), writer.sources, at)
                saved = time.monotonic()
        self._leave_out(met.lines[at.told :])
        self.bad.passed_over.update(met.passed_over)
        bad = self.bad.lines[at.bad :]
        documents = writer.documents - at.documents
        if found.format == "jsonl":
            check_reading(source, found, at.read, at.offered, at.unread, bad)
        if 2 * (at.offered - documents) > at.offered:
            raise RefusedSourceError(
                f"data source '{source.path}': most of it cannot be used with this tokenizer:\n"
                + "\n".join(BadLines(bad).report())
            )
        writer.sources.append(
            SourceCount(
                path=source.path,
                split=source.split,
                format=found.format,
                documents=documents,
                tokens=writer.tokens - at.tokens,
                text_bytes=origins.text_bytes,
                bad_lines=dict(Counter(line.reason for line in bad)),
                passed_over=dict(met.passed_over),
                origins=origins.counts(),
            )
        )

    def _leave_out(self, lines: Sequence[BadLine]) -> None:
        self._writer.add_bad(lines)
        self.bad.lines += lines


@final
class _OriginCounts:
    """Documents, tokens and bytes of each origin; a bounded number of them by name."""

    def __init__(self, before: Sequence[OriginCount] = ()) -> None:
        """Begin with what was counted before."""
        self._counts = {
            Origin(count.source, count.license): np.array(
                [count.documents, count.tokens, count.text_bytes]
            )
            for count in before
        }

    @property
    def text_bytes(self) -> int:
        """Of all documents."""
        return sum(int(text_bytes) for _, _, text_bytes in self._counts.values())

    def add(self, packed: PackedDocuments) -> None:
        """Count documents."""
        found = {origin: number for number, origin in enumerate(dict.fromkeys(packed.origins))}
        numbers = np.fromiter((found[o] for o in packed.origins), np.int64, len(packed.origins))
        order = np.argsort(numbers, kind="stable")
        figures = np.stack([np.ones_like(packed.lengths), packed.lengths, packed.text_bytes])
        firsts = np.searchsorted(numbers[order], np.arange(len(found)))
        sums = np.add.reduceat(figures[:, order], firsts, axis=1) if found else figures
        for origin, number in found.items():
            if origin not in self._counts and len(self._counts) >= _MOST_ORIGINS:
                origin = _OTHER_ORIGINS
            self._counts[origin] = self._counts.get(origin, 0) + sums[:, number]

    def counts(self, always: bool = False) -> list[OriginCount]:
        """By name; nothing if no document named one, unless that is asked for as well."""
        if not always and not self._counts.keys() - {NO_ORIGIN}:
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
            for documents, tokens, text_bytes in [self._counts[origin].tolist()]
        ]


def _blocks(found: SourceFiles, at: SourceProgress) -> Iterator[Batch]:
    """The lines of a source's files that are not written yet."""
    offset, first = at.offset, at.line
    for index, path in enumerate(found.files[at.file :], start=at.file):
        for block in read_blocks(path, offset, first):
            yield Batch(Lines(block, found.split), file=index)
        offset, first = 0, 1


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
