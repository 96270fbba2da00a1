"""How the stream of tokens is cut to rows of equal length."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wmtp.data.shards import Column, Shards
from wmtp.errors import DataError

Spread = Literal["terminal", "uniform"]

_CHUNK = 1 << 22


@final
@dataclass(frozen=True, eq=False)
class DocumentRewards:
    """Rewards of whole documents, and how batches spread each over the tokens of its document.

    Attributes:
        values: reward R of each document, float32, NaN where it has none.
        spread: ``terminal`` puts R on the last wanted token; ``uniform`` puts R / count on each of
            the ``count`` wanted tokens.

    Raises:
        ValueError: a reward is infinite.
    """

    values: NDArray[np.float32]
    spread: Spread = "terminal"

    def __post_init__(self) -> None:
        if np.isinf(self.values).any():
            raise ValueError("a reward is infinite")


@final
@dataclass(frozen=True, eq=False)
class WantedTokens:
    """Where rewards go: the wanted tokens of each document that can be predicted.

    A document's first token is never one of them: nothing stands before it.

    Attributes:
        first: position in the stream of each document's first token, wanted or not, int64.
        last: position in the stream of each document's last one, int64, -1 if it has none.
        count: how many there are, int64.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    count: NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Spans:
    """Where B rows lie in the stream, and in which documents, for T positions of each.

    Attributes:
        starts_B: first position in the stream, int64.
        documents_BT: index of each token's document, int32; -1 where the row has no token.
        left_BT: how many tokens follow in the same document (and within the T positions), int64;
            0 where the row has no token.
    """

    starts_B: NDArray[np.int64]
    documents_BT: NDArray[np.int32]
    left_BT: NDArray[np.int64]

    def read(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values of a stream at the rows' positions, 0 where a row has no token.

        Args:
            values: one for each token of the stream.
        """
        T = self.documents_BT.shape[1]
        starts_B = self.starts_B
        if len(values) < T:
            values = np.pad(values, (0, T - len(values)))
        last = len(values) - T
        read_BT: NDArray[Any] = sliding_window_view(values, T)[np.minimum(starts_B, last)]
        late = np.flatnonzero(starts_B > last)  # near the end of the stream
        if len(late):
            positions = starts_B[late, None] + np.arange(T)
            read_BT[late] = values[np.minimum(positions, len(values) - 1)]
        lacks_B = self.documents_BT[:, -1] < 0
        if lacks_B.any():
            read_BT[self.documents_BT < 0] = 0
        return read_BT


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Shards seen as rows of ``max_length`` input tokens.

    Packed, row ``r`` reads tokens ``r * S .. r * S + S - 1`` of the stream, and its heads aim at
    the tokens after them: a document goes on in the next row, and every token but the first is
    some row's next token exactly once. Not packed, row ``r`` is document ``r``, of which only the
    first ``S`` tokens exist.

    Attributes:
        shards: the tokens.
        max_length: S, input tokens per row.
        packed: several documents per row, or one.
        mask_prompt: prompts are read, but are no valid targets.
        with_loss_weights: batches carry the data's own weights.
        reference_scores: a score per token of the shards (``scores.cached_scores``) that batches
            carry.
        rewards: rewards of the shards' documents that batches carry.

    Raises:
        DataError: weights are asked for and the data has none.
        ValueError: the length is below 1, the scores are not aligned with the tokens, or the
            rewards not with the documents.
    """

    shards: Shards
    max_length: int
    packed: bool = True
    mask_prompt: bool = True
    with_loss_weights: bool = False
    reference_scores: Column | None = None
    rewards: DocumentRewards | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}, below 1")
        scores = self.reference_scores
        if scores is not None and len(scores.values) != self.tokens:
            raise ValueError(f"{len(scores.values)} scores for {self.tokens} tokens")
        documents = self.shards.manifest.documents
        if self.rewards is not None and self.rewards.values.shape != (documents,):
            raise ValueError(f"rewards {self.rewards.values.shape} for {documents} documents")
        if self.with_loss_weights and self.shards.loss_weights is None:
            raise DataError(
                f"the data in '{self.shards.path}' has no loss_weights, which the weighting needs. "
                "Give them in the JSONL lines, or choose another weighting.algorithm."
            )

    def __len__(self) -> int:
        if self.packed:  # the last token of the stream is a target only
            return max(1, -(-(self.tokens - 1) // self.max_length))
        return self.shards.manifest.documents

    @property
    def tokens(self) -> int:
        """Tokens in the whole stream."""
        return self.shards.manifest.tokens

    def starts(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the stream each row begins."""
        if self.packed:
            return rows_B * self.max_length
        return np.where(rows_B > 0, self.shards.ends[rows_B - 1], 0)

    def stops(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the stream the tokens end that a row may know of, as input or target."""
        if self.packed:
            return np.full_like(rows_B, self.tokens)
        return np.minimum(self.shards.ends[rows_B], self.starts(rows_B) + self.max_length)

    def documents_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the document that each position of the stream lies in."""
        return np.searchsorted(self.shards.ends, positions, side="right")

    def spans(self, rows_B: NDArray[np.int64], count: int) -> Spans:
        """Where rows lie, for ``count`` positions of each.

        A row is a few stretches of one document each, and at its end perhaps one of nothing: what
        is to be known of a token is found for each stretch, and repeated.
        """
        starts_B, ends = self.starts(rows_B), self.shards.ends
        stops_B = np.minimum(self.stops(rows_B), starts_B + count)
        first_B, last_B = self.documents_at(starts_B), self.documents_at(stops_B - 1)
        stretches_B = last_B - first_B + 2
        beyond = np.cumsum(stretches_B)
        begin, nothing = beyond - stretches_B, beyond - 1  # of each row, its first and last stretch
        documents = np.arange(beyond[-1]) - np.repeat(begin - first_B, stretches_B)
        documents[nothing] = last_B  # any that exists; replaced below
        ends_of_stretches = np.minimum(ends[documents], np.repeat(stops_B, stretches_B))
        ends_of_stretches[nothing] = starts_B + count
        starts_of_stretches = np.concatenate([starts_B[:1], ends_of_stretches[:-1]])
        starts_of_stretches[begin] = starts_B
        lengths = ends_of_stretches - starts_of_stretches
        documents[nothing] = -1
        shape = (len(rows_B), count)
        # position of the last token, counted from the row's start
        last_tokens = ends_of_stretches - np.repeat(starts_B, stretches_B) - 1
        last_tokens[nothing] = -1
        left_BT = np.repeat(last_tokens, lengths).reshape(shape) - np.arange(count)
        return Spans(
            starts_B,
            np.repeat(documents.astype(np.int32), lengths).reshape(shape),
            np.maximum(left_BT, 0, out=left_BT),
        )

    @cached_property
    def wanted_tokens(self) -> WantedTokens:
        """The tokens of each document that are to be learned; reads all of them once."""
        ends = np.asarray(self.shards.ends)
        firsts = np.concatenate([[0], ends[:-1]])
        wanted = self.shards.wanted if self.mask_prompt else None
        if wanted is None:
            count = ends - firsts - 1
            return WantedTokens(firsts, np.where(count > 0, ends - 1, -1), count)
        last, count = np.full(len(ends), -1), np.zeros(len(ends), dtype=np.int64)
        for start in range(0, self.tokens, _CHUNK):
            positions = start + np.flatnonzero(wanted.values[start : start + _CHUNK])
            documents = self.documents_at(positions)
            can_be_target = positions > firsts[documents]
            positions, documents = positions[can_be_target], documents[can_be_target]
            np.add.at(count, documents, 1)
            np.maximum.at(last, documents, positions)
        return WantedTokens(firsts, last, count)

    def describe(self, row: int) -> str:
        """Where a row's text came from, for messages: ``FILE:LINE``, or the first and the last."""
        rows_B = np.array([row])
        first = int(self.starts(rows_B)[0])
        last = min(first + self.max_length, int(self.stops(rows_B)[0])) - 1
        documents = self.documents_at(np.array([first, last]))
        names = self.shards.document_names(int(documents[0]), int(documents[1]))
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
