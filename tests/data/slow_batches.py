"""Batches as they are defined, position by position: what the fast ones are compared with."""

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.data.rows import DocumentRewards, Rows, WantedTokens
from wmtp.data.shards import Column


def gather_rows_slowly(rows: Rows, rows_B: NDArray[np.int64], horizon: int) -> Batch:
    """The batch of the given rows."""
    S, T = rows.max_length, rows.max_length + horizon  # T: a row and what its heads aim at
    positions_BT = rows.starts(rows_B)[:, None] + np.arange(T)
    exists_BT = positions_BT < rows.stops(rows_B)[:, None]
    known_BT = np.minimum(positions_BT, rows.tokens - 1)

    stream_BT = _pick(rows.shards.tokens, known_BT, exists_BT, np.int64)
    documents_BT = np.where(exists_BT, rows.documents_at(known_BT), -1)
    wanted_BT = exists_BT
    wanted = rows.shards.wanted if rows.mask_prompt else None
    if wanted is not None:
        wanted_BT = _pick(wanted.values, known_BT, exists_BT, np.bool_)
    documents_BS1 = documents_BT[:, :S, None]
    valid_BSH = (_targets(documents_BT, horizon) == documents_BS1) & _targets(wanted_BT, horizon)

    weights = rows.shards.loss_weights if rows.with_loss_weights else None
    rewards_BSH = last_BSH = None
    if rows.rewards is not None:
        rewards_BT, last_BT = _rewards(
            rows.rewards, rows.wanted_tokens, documents_BT, positions_BT, wanted_BT
        )
        rewards_BSH = _tensor(_targets(rewards_BT, horizon))
        last_BSH = _tensor(_targets(last_BT, horizon))
    return Batch(
        tokens_BS=_tensor(stream_BT[:, :S]),
        targets_BSH=_tensor(_targets(stream_BT, horizon)),
        valid_BSH=_tensor(valid_BSH),
        documents_BS=_tensor(documents_BT[:, :S].astype(np.int32)) if rows.packed else None,
        reference_ce_BSH=_aligned(rows.reference_scores, known_BT, exists_BT, horizon),
        loss_weights_BSH=_aligned(weights, known_BT, exists_BT, horizon),
        valid_counts_H=tuple(valid_BSH.sum((0, 1)).tolist()),
        rows=tuple(rows_B.tolist()),
        rewards_BSH=rewards_BSH,
        last_BSH=last_BSH,
    )


def _rewards(
    rewards: DocumentRewards,
    wanted_tokens: WantedTokens,
    documents_BT: NDArray[np.int64],
    positions_BT: NDArray[np.int64],
    wanted_BT: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The reward of each token, and whether it is its document's last wanted one.

    Where there is no token ``documents_BT`` is -1 and ``wanted_BT`` False.
    """
    exists_BT = documents_BT >= 0
    last_BT = exists_BT & (positions_BT == wanted_tokens.last[documents_BT])
    of_document_BT = rewards.values[documents_BT]
    if rewards.spread == "terminal":
        share_BT = np.where(last_BT, of_document_BT, 0)
    else:
        count_BT = np.maximum(wanted_tokens.count[documents_BT], 1)
        takes_BT = wanted_BT & (positions_BT > wanted_tokens.first[documents_BT])
        share_BT = np.where(takes_BT, of_document_BT / count_BT, 0)
    share_BT = np.where(np.isnan(of_document_BT), np.nan, share_BT)
    return np.where(exists_BT, share_BT, 0).astype(np.float32), last_BT


def _targets(x_BT: NDArray[Any], horizon: int) -> NDArray[Any]:
    """Entry ``[b, s, h]`` is ``x_BT[b, s + 1 + h]``: the shift."""
    return sliding_window_view(x_BT[:, 1:], horizon, axis=1)


def _aligned(
    column: Column | None,
    known_BT: NDArray[np.int64],
    exists_BT: NDArray[np.bool_],
    horizon: int,
) -> Tensor | None:
    """A column's value of each target."""
    if column is None:
        return None
    return _tensor(_targets(_pick(column.values, known_BT, exists_BT, np.float32), horizon))


def _pick(
    values: NDArray[Any], known_BT: NDArray[np.int64], exists_BT: NDArray[np.bool_], dtype: Any
) -> NDArray[Any]:
    """The values at positions, 0 where there is no such position."""
    return np.where(exists_BT, values[known_BT], 0).astype(dtype)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.copy())  # a window on another array cannot be written to
