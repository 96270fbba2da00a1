"""Scores of a reference model, kept next to the tokens they belong to.

The score ``r_t`` is the reference's next-token cross-entropy of token ``t`` given the tokens
before it in the same document and the same row: what head 0 sees at position ``t - 1``. Every
token is the next token of at most one row's position, so one number per token serves all heads.
A token after the end of a packed row, at which only later heads aim, has the score from the row
that follows.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.rows import Rows
from wmtp.data.shards import Column, Shards, add_column

LARGEST_SCORE = 65504.0
"""The largest number of float16, in which scores are stored."""


def score_key(shards: Shards, reference_fingerprint: str, max_length: int, packed: bool) -> str:
    """Name of the scores of a reference for this data, cut to rows in this way; 16 hex digits."""
    manifest = shards.manifest
    parts = [manifest.tokens_sha256, manifest.tokenizer, reference_fingerprint, max_length, packed]
    # where documents end decides what the reference may see
    ends = hashlib.sha256(np.ascontiguousarray(shards.ends).tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([*parts, ends]).encode()).hexdigest()[:16]


def cached_scores(shards: Shards, key: str) -> Column | None:
    """The score of every token, 0 where there is none, or None if none were written.

    Raises:
        DataError: the file is damaged.
    """
    return shards.column(_column_name(key))


def scoring_rows(shards: Shards, max_length: int, packed: bool) -> Rows:
    """The rows to score: prompts too, so that the scores serve whatever a recipe masks."""
    return Rows(shards, max_length, packed=packed, mask_prompt=False)


def write_scores(rows: Rows, key: str, ce_chunks: Iterable[Tensor]) -> Column:
    """Write the scores of all rows; they are there when complete, and not before.

    Args:
        rows: the rows that were scored (``scoring_rows``).
        key: from ``score_key``.
        ce_chunks: cross-entropy in nats of each position's next token, float ``[b, S]`` on the
            CPU, the rows in order and each once; 0 where the next token is not valid.

    Returns:
        The score of every token, as ``cached_scores`` gives it.

    Raises:
        ValueError: there are more or fewer rows than in ``rows``, or a score is not finite.
        StorageError: the file could not be written.
    """
    values = _in_token_order(rows, ce_chunks)
    return add_column(rows.shards, _column_name(key), "f16", values)


def _in_token_order(rows: Rows, ce_chunks: Iterable[Tensor]) -> Iterator[NDArray[np.float32]]:
    """The chunks' scores as pieces of the column: one number for each token of the stream."""
    done = written = 0
    for ce_bS in ce_chunks:
        scores_bS = ce_bS.float().numpy()
        rows_b = np.arange(done, done + len(scores_bS))
        done += len(scores_bS)
        if scores_bS.shape[1:] != (rows.max_length,) or done > len(rows):
            raise ValueError(f"scores {scores_bS.shape} for rows up to {done} of {len(rows)}")
        if not np.isfinite(scores_bS).all():
            raise ValueError(f"a score in the rows up to {done} is not finite")
        next_bS = rows.starts(rows_b)[:, None] + 1 + np.arange(rows.max_length)
        exists_bS = next_bS < rows.stops(rows_b)[:, None]
        piece = np.zeros(_scored_tokens(rows, done) - written, dtype=np.float32)
        piece[next_bS[exists_bS] - written] = np.minimum(scores_bS[exists_bS], LARGEST_SCORE)
        written += len(piece)
        yield piece
    if done != len(rows):
        raise ValueError(f"scores of {done} rows out of {len(rows)}")


def _scored_tokens(rows: Rows, done: int) -> int:
    """How many tokens of the stream have their score once the first ``done`` rows are scored."""
    if rows.packed:
        return min(done * rows.max_length + 1, rows.tokens)
    return int(rows.shards.ends[done - 1])


def _column_name(key: str) -> str:
    return f"ref_ce.{key}"
