"""Batches of documents become tokens in several processes, in the order in which they came."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from wmtp.data.documents import BadLine, BadLines, Document, TokenDocument
from wmtp.data.encoding import PackedDocuments, encode_documents, pack_documents
from wmtp.data.fast_encoding import FastEncoder, NoFastEncoderError, fast_encoder
from wmtp.data.tokenizer import TextTokenizer
from wmtp.runtime.pool import pool


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

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process makes its own fast encoder, which was tried here."""
        return BatchEncoder, (self.tokenizer, (), self.note is None)

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
        WorkerError: a process ended, for want of memory as a rule.
    """
    waiting: deque[Batch] = deque()

    def documents() -> Iterator[Sequence[Document | TokenDocument]]:
        for batch in batches:
            waiting.append(batch)
            yield batch.documents

    with pool(workers, encoder) as run:
        for encoded, bad in run(BatchEncoder.encode, documents(), in_order=True):
            yield EncodedBatch(waiting.popleft(), encoded, tuple(bad.lines))
