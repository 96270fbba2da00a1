"""Batches of documents become tokens in several processes, in the order in which they came."""

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from wmtp.data.documents import BadLine, BadLines, Document, TokenDocument
from wmtp.data.encoding import PackedDocuments, encode_and_pack
from wmtp.data.fast_encoding import FastEncoder, NoFastEncoderError, fast_encoder
from wmtp.data.json_blocks import parse_block
from wmtp.data.splits import Split
from wmtp.data.text_files import LineBlock
from wmtp.data.tokenizer import TextTokenizer
from wmtp.runtime.pool import pool


class Lines(NamedTuple):
    """Lines whose documents of a split are wanted: they are parsed where they are tokenized."""

    block: LineBlock
    split: Split


Work = Lines | Sequence[Document | TokenDocument]
"""What is tokenized together."""


@dataclass(frozen=True)
class Batch:
    """Documents that are tokenized together, and how far the reader was behind them.

    Attributes:
        work: documents, or lines that hold them.
        bad_before: how many bad lines the reader had met by itself.
        file: place of the file of a block of lines.
    """

    work: Work
    bad_before: int = 0
    file: int = 0


class Encoded(NamedTuple):
    """What became of a batch.

    Attributes:
        documents: those that can be used.
        bad: what cannot be: lines first, then documents.
        offered: documents that there were.
        read: lines that were parsed here.
        unread: how many of those are bad.
    """

    documents: PackedDocuments
    bad: list[BadLine]
    offered: int
    read: int = 0
    unread: int = 0


@final
class BatchEncoder:
    """A tokenizer, through its fast encoder where it has one.

    Attributes:
        note: why there is no fast encoder, or None.
    """

    def __init__(
        self, tokenizer: TextTokenizer, sample: Sequence[str] = (), use_fast: bool = True
    ) -> None:
        """Try the fast encoder on the sample first."""
        self.tokenizer = tokenizer
        self.note: str | None = None
        self._fast: FastEncoder | None = None
        try:
            self._fast = fast_encoder(tokenizer, sample) if use_fast else None
        except NoFastEncoderError as error:
            self.note = f"tokenized by tokenizer.json itself, which takes longer: {error}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process makes its own fast encoder, which was tried here."""
        return BatchEncoder, (self.tokenizer, (), self.note is None)

    def encode(self, work: Work) -> Encoded:
        """The documents' tokens, and what could not be used."""
        with _no_search_for_cycles():
            if isinstance(work, Lines):
                documents, read, unread = parse_block(*work)
            else:
                documents, read, unread = list(work), 0, []
            bad = BadLines(list(unread))
            packed = encode_and_pack(self.tokenizer, documents, bad, self._fast)
            return Encoded(packed, bad.lines, len(documents), read, len(unread))


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Thousands of short documents would have Python look for cycles, of which there are none.

    That took a tenth of the time of tokenizing them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def encode_batches(
    batches: Iterable[Batch], encoder: BatchEncoder, workers: int
) -> Iterator[tuple[Batch, Encoded]]:
    """Encode batches in order; the result is the same for any number of processes.

    Args:
        batches: read a few ahead.
        encoder: used as it is by this process, or copied by the others.
        workers: how many processes; 0 and 1 stand for this one alone.

    Raises:
        WorkerError: a process ended, for want of memory as a rule.
    """
    waiting: deque[Batch] = deque()

    def works() -> Iterator[Work]:
        for batch in batches:
            waiting.append(batch)
            yield batch.work

    with pool(workers, encoder) as run:
        for encoded in run(BatchEncoder.encode, works(), in_order=True):
            yield waiting.popleft(), encoded
