"""Batches of documents become tokens in several processes, in the order in which they came."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import final

from wmtp.data.documents import BadLine, BadLines, Document, TokenDocument
from wmtp.data.encoding import PackedDocuments, encode_documents, pack_documents
from wmtp.data.fast_encoding import FastEncoder, NoFastEncoderError, fast_encoder
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.runtime.stopping import end_with_parent

_BATCHES_AHEAD = 2  # of each process: enough that none waits for the reader


@dataclass(frozen=True)
class Batch:
    """Documents that are tokenized together.

    Attributes:
        bad_before: how many bad lines the reader had met when the last of them was read.
    """

    documents: Sequence[Document | TokenDocument]
    bad_before: int


@dataclass(frozen=True)
class EncodedBatch:
    """What became of a batch, and which of its documents could not be used."""

    batch: Batch
    documents: PackedDocuments
    bad: tuple[BadLine, ...]


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

    def encode(
        self, documents: Sequence[Document | TokenDocument]
    ) -> tuple[PackedDocuments, BadLines]:
        """The documents' tokens, and what could not be used."""
        bad = BadLines()
        encoded = encode_documents(self.tokenizer, documents, bad, self._fast)
        return pack_documents(encoded), bad


def encode_batches(
    batches: Iterable[Batch], encoder: BatchEncoder, workers: int
) -> Iterator[EncodedBatch]:
    """Encode batches in order; the result is the same for any number of processes.

    Args:
        batches: read a few ahead.
        encoder: used as it is by this process, or copied by the others.
        workers: how many processes; 0 and 1 stand for this one alone.

    Raises:
        DataError: a process ended, for want of memory as a rule.
    """
    if workers <= 1:
        for batch in batches:
            yield _encoded(batch, *encoder.encode(batch.documents))
        return
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Batch, Future[tuple[PackedDocuments, BadLines]]]] = deque()
    with ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_begin,
        initargs=(encoder.tokenizer, encoder.note is None),
    ) as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_encode_here, batch.documents)))
                if len(waiting) >= _BATCHES_AHEAD * workers:
                    first, future = waiting.popleft()
                    yield _encoded(first, *future.result())
            while waiting:
                first, future = waiting.popleft()
                yield _encoded(first, *future.result())
        except BrokenProcessPool as error:
            raise DataError(
                "a process that tokenized has ended, perhaps for want of memory. Use fewer "
                "--workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _encoded(batch: Batch, documents: PackedDocuments, bad: BadLines) -> EncodedBatch:
    return EncodedBatch(batch, documents, tuple(bad.lines))


_encoder_here: BatchEncoder | None = None


def _begin(tokenizer: TextTokenizer, use_fast: bool) -> None:
    """Make a process ready; it ends with the one that started it, however that ends."""
    global _encoder_here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all of them; the first decides
    end_with_parent()
    _encoder_here = BatchEncoder(tokenizer, use_fast=use_fast)


def _encode_here(documents: Sequence[Document | TokenDocument]) -> tuple[PackedDocuments, BadLines]:
    assert _encoder_here is not None
    return _encoder_here.encode(documents)
