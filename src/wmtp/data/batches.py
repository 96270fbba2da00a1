"""One micro-batch: what the heads read and aim at. The shift by ``h + 1`` happens here only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.order import rows_at
from wmtp.data.rows import DocumentRewards, Rows, Spans, WantedTokens
from wmtp.data.shards import Column
from wmtp.errors import DataError


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B rows with S positions and H heads.

    Attributes:
        tokens_BS: inputs ``x_s``, int64; 0 after the end of the data.
        targets_BSH: ``x_{s+1+h}``, int64: the true token wherever the row has one, valid or not,
            because sequential heads read it; 0 elsewhere. The tokens ``x_0 .. x_{S+H-2}`` of a row
            are ``cat(tokens_BS, targets_BSH[:, -1, :H-1])``.
        valid_BSH: bool, the target exists, lies in the document of ``x_s``, and is wanted.
        documents_BS: int32 index of the document that each token lies in, -1 after the end of the
            data; None when every row is one document.
        reference_ce_BSH: float32 score of each target token, 0 where there is none; None if not
            asked for.
        loss_weights_BSH: float32 weight that the data gives each target token, 0 where there is
            none; None if not asked for.
        rewards_BSH: float32 reward of each target token, as ``DocumentRewards.spread`` puts it: 0
            where no reward goes and where there is no token, NaN at every token of a document
            without a reward; None if not asked for. Whether a target is valid does not matter.
        last_BSH: bool, the target token is its document's last wanted one; None if rewards were
            not asked for.
        valid_counts_H: number of valid targets of each head, known without asking a device.
        rows: which rows of the data these are.
    """

    tokens_BS: Tensor
    targets_BSH: Tensor
    valid_BSH: Tensor
    documents_BS: Tensor | None
    reference_ce_BSH: Tensor | None
    loss_weights_BSH: Tensor | None
    valid_counts_H: tuple[int, ...]
    rows: tuple[int, ...]
    rewards_BSH: Tensor | None = None
    last_BSH: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes a batch travels as plain bytes. Torch would hand over shared memory,
        # which containers ration, from a thread that crashes if its process ends meanwhile.
        fields = vars(self).values()
        return _from_plain, tuple(f.numpy() if isinstance(f, Tensor) else f for f in fields)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copy does not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; ``DataLoader`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        def change_if_any(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return Batch(
            tokens_BS=change(self.tokens_BS),
            targets_BSH=change(self.targets_BSH),
            valid_BSH=change(self.valid_BSH),
            documents_BS=change_if_any(self.documents_BS),
            reference_ce_BSH=change_if_any(self.reference_ce_BSH),
            loss_weights_BSH=change_if_any(self.loss_weights_BSH),
            valid_counts_H=self.valid_counts_H,
            rows=self.rows,
            rewards_BSH=change_if_any(self.rewards_BSH),
            last_BSH=change_if_any(self.last_BSH),
        )


def _from_plain(*fields: Any) -> Batch:
    tensors: list[Any] = [torch.from_numpy(f) if isinstance(f, np.ndarray) else f for f in fields]
    return Batch(*tensors)


def batch_at(rows: Rows, seed: int, start_row: int, batch_size: int, horizon: int) -> Batch:
    """The micro-batch that begins at a position of the shuffled, endless stream of rows.

    Nothing else decides what is in it: not what was read before, nor by how many workers.

    Args:
        rows: the data.
        seed: of the order.
        start_row: position of the first row, counted from the start of training over all epochs.
        batch_size: B.
        horizon: H.
    """
    return gather_rows(rows, rows_at(len(rows), seed, start_row, batch_size), horizon)


def evaluation_batches(
    rows: Rows,
    *,
    batch_size: int,
    horizon: int,
    max_rows: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Every row once and in order, or ``max_rows`` evenly spread; the last batch may be short.

    Several ranks take turns at the rows. Each gets as many batches as the others, because they
    run a shared model together; where rows run out, a batch has no valid target.
    """
    count = min(len(rows), max_rows or len(rows))
    chosen = np.arange(count) * len(rows) // count
    own = chosen[rank::ranks]
    for start in range(0, -(-count // ranks), batch_size):
        if start < len(own):
            yield gather_rows(rows, own[start : start + batch_size], horizon)
        else:
            yield _without_targets(gather_rows(rows, chosen[:1], horizon))


def _without_targets(batch: Batch) -> Batch:
    nothing_BSH = torch.zeros_like(batch.valid_BSH)
    return replace(batch, valid_BSH=nothing_BSH, valid_counts_H=(0,) * nothing_BSH.shape[2])


def gather_rows(rows: Rows, rows_B: NDArray[np.int64], horizon: int) -> Batch:
    """The batch of the given rows.

    Raises:
        DataError: a token is outside the vocabulary: the file was damaged.
        ValueError: ``horizon`` is below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}, below 1")
    S, T = rows.max_length, rows.max_length + horizon  # T: a row and what its heads aim at
    spans = rows.spans(rows_B, T)

    stored_BT = spans.read(rows.shards.tokens)
    if stored_BT.max(initial=0) >= rows.shards.manifest.vocab_size:
        raise DataError(
            f"shards '{rows.shards.path}' are damaged: token {stored_BT.max()} is outside the "
            "vocabulary. Delete the folder and prepare it again."
        )
    stream_BT = stored_BT.astype(np.int64)
    left_BS = np.minimum(spans.left_BT[:, :S], horizon)
    valid_BSH = np.take(_heads_with_targets(horizon), left_BS, axis=0)
    wanted = rows.shards.wanted if rows.mask_prompt else None
    if wanted is not None:
        wanted_BT = spans.read(wanted.values) != 0
        valid_BSH &= _targets(wanted_BT, horizon)

    weights = rows.shards.loss_weights if rows.with_loss_weights else None
    rewards_BSH = last_BSH = None
    if rows.rewards is not None:
        exists_BT = spans.documents_BT >= 0
        rewards_BT, last_BT = _rewards(
            rows.rewards,
            rows.wanted_tokens,
            spans.documents_BT,
            spans.starts_B[:, None] + np.arange(T),
            exists_BT if wanted is None else wanted_BT,
        )
        rewards_BSH = torch.from_numpy(_targets(rewards_BT, horizon))
        last_BSH = torch.from_numpy(_targets(last_BT, horizon))
    return Batch(
        tokens_BS=torch.from_numpy(stream_BT[:, :S].copy()),
        targets_BSH=torch.from_numpy(_targets(stream_BT, horizon)),
        valid_BSH=torch.from_numpy(valid_BSH),
        documents_BS=torch.from_numpy(spans.documents_BT[:, :S].copy()) if rows.packed else None,
        reference_ce_BSH=_aligned(rows.reference_scores, spans, horizon),
        loss_weights_BSH=_aligned(weights, spans, horizon),
        valid_counts_H=tuple(int(np.count_nonzero(valid_BSH[:, :, h])) for h in range(horizon)),
        rows=tuple(rows_B.tolist()),
        rewards_BSH=rewards_BSH,
        last_BSH=last_BSH,
    )


def _rewards(
    rewards: DocumentRewards,
    wanted_tokens: WantedTokens,
    documents_BT: NDArray[np.int32],
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


@lru_cache(maxsize=8)
def _heads_with_targets(horizon: int) -> NDArray[np.bool_]:
    """Row ``n``: which heads have a target where ``n`` more tokens follow, bool ``[H + 1, H]``."""
    return np.arange(horizon) < np.arange(horizon + 1)[:, None]


def _targets(x_BT: NDArray[Any], horizon: int) -> NDArray[Any]:
    """Entry ``[b, s, h]`` is ``x_BT[b, s + 1 + h]``: the shift."""
    B, T = x_BT.shape
    S = T - horizon
    targets_BSH = np.empty((B, S, horizon), dtype=x_BT.dtype)
    for h in range(horizon):
        targets_BSH[:, :, h] = x_BT[:, 1 + h : 1 + h + S]
    return targets_BSH


def _aligned(column: Column | None, spans: Spans, horizon: int) -> Tensor | None:
    """A column's value of each target."""
    if column is None:
        return None
    values_BT = spans.read(column.values).astype(np.float32)
    return torch.from_numpy(_targets(values_BT, horizon))
