"""How the stream of tokens is cut to rows of equal length."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from wmtp.data.shards import Column, Shards
from wmtp.errors import DataError


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

    Raises:
        DataError: weights are asked for and the data has none.
        ValueError: the length is below 1, or the scores are not aligned with the tokens.
    """

    shards: Shards
    max_length: int
    packed: bool = True
    mask_prompt: bool = True
    with_loss_weights: bool = False
    reference_scores: Column | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}, below 1")
        scores = self.reference_scores
        if scores is not None and len(scores.values) != self.tokens:
            raise ValueError(f"{len(scores.values)} scores for {self.tokens} tokens")
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

    def describe(self, row: int) -> str:
        """Where a row's text came from, for messages: ``FILE:LINE``, or the first and the last."""
        rows_B = np.array([row])
        first = int(self.starts(rows_B)[0])
        last = min(first + self.max_length, int(self.stops(rows_B)[0])) - 1
        documents = self.documents_at(np.array([first, last]))
        names = self.shards.document_names(int(documents[0]), int(documents[1]))
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
