"""Documents become tokens, with what the data says about each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wmtp.data.documents import (
    NO_ORIGIN,
    BadLines,
    Document,
    Origin,
    TokenDocument,
    UnusableError,
)
from wmtp.data.tokenizer import TextTokenizer


@dataclass(frozen=True)
class EncodedDocument:
    """A document as it goes to disk: what the tokenizer puts in front, its text, its end.

    Attributes:
        name: where it comes from.
        ids: its tokens, int32.
        wanted: for each whether it is to be learned; only tokens of a prompt are not.
        weights: ``loss_weights`` of each, float32, or None where the data says nothing.
        reward: of the whole document, or None.
        group: what it competes within, or None.
        origin: where the data says that it is from.
        text_bytes: length of its text in UTF-8, 0 where it came as ids.
    """

    name: str
    ids: NDArray[np.int32]
    wanted: NDArray[np.bool_]
    weights: NDArray[np.float32] | None
    reward: float | None = None
    group: str | None = None
    origin: Origin = NO_ORIGIN
    text_bytes: int = 0


@dataclass(frozen=True)
class PackedDocuments:
    """Documents one after the other, as they are sent between processes and written.

    Attributes:
        names: where each comes from.
        ids: the tokens of all of them, int32.
        lengths: tokens of each, int64.
        wanted: for each token, or None where all are wanted.
        weights: of each token, float32, or None where no document has any.
        rewards: of each document, float32, NaN where it has none; None where none has one.
        groups: of each document.
        origins: of each document.
        text_bytes: of each document, int64.
    """

    names: tuple[str, ...]
    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    wanted: NDArray[np.bool_] | None
    weights: NDArray[np.float32] | None
    rewards: NDArray[np.float32] | None
    groups: tuple[str | None, ...]
    origins: tuple[Origin, ...]
    text_bytes: NDArray[np.int64]


def pack_documents(documents: Sequence[EncodedDocument]) -> PackedDocuments:
    """Put documents one after the other."""
    wanted = np.concatenate([np.empty(0, dtype=bool), *(d.wanted for d in documents)])
    weights = None
    if any(d.weights is not None for d in documents):
        weights = np.concatenate(
            [_constant(1.0, len(d.ids)) if d.weights is None else d.weights for d in documents]
        )
    return PackedDocuments(
        names=tuple(d.name for d in documents),
        ids=np.concatenate([np.empty(0, dtype=np.int32), *(d.ids for d in documents)]),
        lengths=np.array([len(d.ids) for d in documents], dtype=np.int64),
        wanted=None if wanted.all() else wanted,
        weights=weights,
        rewards=_rewards([d.reward for d in documents]),
        groups=tuple(d.group for d in documents),
        origins=tuple(d.origin for d in documents),
        text_bytes=np.array([d.text_bytes for d in documents], dtype=np.int64),
    )


class EncodesBatch(Protocol):
    """A tokenizer, or what gives the same ids."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, without what goes in front of it or ends it."""

    def encode_joined(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The same ids, all texts' one after the other, and how many there are of each."""


def encode_and_pack(
    tokenizer: TextTokenizer,
    documents: Sequence[Document | TokenDocument],
    bad: BadLines,
    encoder: EncodesBatch | None = None,
) -> PackedDocuments:
    """As ``pack_documents(encode_documents(...))``; no work is done document by document.

    Only documents that come as ids or have spans of weights go the slow way.
    """
    texts = [d for d in documents if isinstance(d, Document) and not d.spans]
    if not texts or len(texts) < len(documents):
        return pack_documents(encode_documents(tokenizer, documents, bad, encoder))
    segments = [segment for document in texts for segment in document.segments]
    ids, lengths = (encoder or tokenizer).encode_joined([segment.text for segment in segments])
    counts = np.array([len(document.segments) for document in texts])
    last = np.cumsum(counts) - 1  # of each document's segments
    first = last + 1 - counts
    lengths_of_documents = np.add.reduceat(lengths, first) + len(tokenizer.bos_ids) + 1
    ends = np.cumsum(lengths_of_documents)
    whole = np.empty(int(ends[-1]), dtype=np.int32)
    is_text = np.ones(len(whole), dtype=bool)
    for place, token in enumerate(tokenizer.bos_ids):
        whole[ends - lengths_of_documents + place] = token
        is_text[ends - lengths_of_documents + place] = False
    whole[ends - 1] = tokenizer.eos_id
    is_text[ends - 1] = False
    whole[is_text] = ids
    wanted = None
    if not all(segment.wanted for segment in segments):
        wanted_segments = np.array([segment.wanted for segment in segments])
        wanted = np.ones(len(whole), dtype=bool)
        wanted[is_text] = np.repeat(wanted_segments, lengths)
        wanted[ends - 1] = wanted_segments[last]
    weights = None
    if any(document.weight is not None for document in texts):
        given = [1.0 if document.weight is None else document.weight for document in texts]
        weights = np.repeat(np.array(given, dtype=np.float32), lengths_of_documents)
    text_bytes = np.array([len(segment.text.encode()) for segment in segments], dtype=np.int64)
    return PackedDocuments(
        names=tuple(document.name for document in texts),
        ids=whole,
        lengths=lengths_of_documents,
        wanted=None if wanted is None or wanted.all() else wanted,
        weights=weights,
        rewards=_rewards([document.reward for document in texts]),
        groups=tuple(document.group for document in texts),
        origins=tuple(document.origin for document in texts),
        text_bytes=np.add.reduceat(text_bytes, first),
    )


def _rewards(rewards: Sequence[float | None]) -> NDArray[np.float32] | None:
    if all(reward is None for reward in rewards):
        return None
    return np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float32)


def encode_documents(
    tokenizer: TextTokenizer,
    documents: Sequence[Document | TokenDocument],
    bad: BadLines,
    encoder: EncodesBatch | None = None,
) -> list[EncodedDocument]:
    """Tokenize documents, all their texts at once; what cannot be used is told to ``bad``.

    A span of weights goes to the tokens by their last character: a word usually carries the space
    before it, so that the span of a word is that word's token, with and without its space.

    Args:
        tokenizer: decides what a document is.
        documents: in the order of the result.
        bad: takes what cannot be used.
        encoder: asked for the ids of texts without spans instead of the tokenizer.
    """
    texts = [
        segment.text
        for document in documents
        if isinstance(document, Document) and not document.spans
        for segment in document.segments
    ]
    encoded_texts = iter((encoder or tokenizer).encode_batch(texts))
    encoded = []
    for document in documents:
        if isinstance(document, TokenDocument):
            with bad.at(document.name):
                encoded.append(_encode_ids(tokenizer, document))
        elif document.spans:
            encoded.append(_encode_with_spans(tokenizer, document))
        else:
            parts = [next(encoded_texts) for _ in document.segments]
            weights = None
            if document.weight is not None:
                weights = [_constant(document.weight, len(ids)) for ids in parts]
            encoded.append(_join(tokenizer, document, parts, weights))
    return encoded


def _encode_with_spans(tokenizer: TextTokenizer, document: Document) -> EncodedDocument:
    base = 1.0 if document.weight is None else document.weight
    weights_of_characters = _constant(base, sum(len(s.text) for s in document.segments))
    for start, stop, weight in document.spans:
        weights_of_characters[start:stop] = weight
    parts, weights, offset = [], [], 0
    for segment in document.segments:
        ids, ends = tokenizer.encode_with_ends(segment.text)
        parts.append(ids)
        weights.append(weights_of_characters[offset + np.maximum(ends - 1, 0)])
        offset += len(segment.text)
    return _join(tokenizer, document, parts, weights)


def _join(
    tokenizer: TextTokenizer,
    document: Document,
    parts: Sequence[NDArray[np.int32]],
    weights: Sequence[NDArray[np.float32]] | None,
) -> EncodedDocument:
    """Put the beginning and the end around a document's segments."""
    front = np.array(tokenizer.bos_ids, dtype=np.int32)
    end = np.array([tokenizer.eos_id], dtype=np.int32)
    whole = np.concatenate([front, *parts, end])
    wanted = np.ones(len(whole), dtype=bool)
    stop = len(front)
    for ids, segment in zip(parts, document.segments, strict=True):
        start, stop = stop, stop + len(ids)
        if not segment.wanted:
            wanted[start:stop] = False
    wanted[stop:] = document.segments[-1].wanted
    base = 1.0 if document.weight is None else document.weight
    return EncodedDocument(
        document.name,
        whole,
        wanted,
        None
        if weights is None
        else np.concatenate([_constant(base, len(front)), *weights, _constant(base, 1)]),
        document.reward,
        document.group,
        document.origin,
        sum(len(segment.text.encode()) for segment in document.segments),
    )


def _encode_ids(tokenizer: TextTokenizer, document: TokenDocument) -> EncodedDocument:
    """Ids as they came; what stands in front and at the end is added where it is missing."""
    outside = [i for i in document.ids if not 0 <= i < tokenizer.vocab_size]
    if outside:
        raise UnusableError(
            "token outside the vocabulary", f"{outside[0]} is not below {tokenizer.vocab_size}"
        )
    ids = document.ids
    starts_right = ids[: len(tokenizer.bos_ids)] == tokenizer.bos_ids
    front = () if starts_right else tokenizer.bos_ids
    end = () if ids[-1] == tokenizer.eos_id else (tokenizer.eos_id,)
    whole = np.array([*front, *ids, *end], dtype=np.int32)
    weights = None
    if document.weights is not None:
        given = np.array(document.weights, dtype=np.float32)
        weights = np.concatenate([_constant(1.0, len(front)), given, _constant(1.0, len(end))])
    wanted = np.ones(len(whole), dtype=bool)
    return EncodedDocument(
        document.name, whole, wanted, weights, document.reward, document.group, document.origin
    )


def _constant(value: float, count: int) -> NDArray[np.float32]:
    return np.full(count, value, dtype=np.float32)
