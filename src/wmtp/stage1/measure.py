"""What the value head makes of documents: the loss of a step, and figures on held-out ones."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wmtp.data.batches import gather_rows
from wmtp.data.order import rows_at
from wmtp.data.pairs import CORRECT_ABOVE, group_auc
from wmtp.data.rows import Rows
from wmtp.errors import DivergedError
from wmtp.job import Job
from wmtp.model.value_head import ValueHead
from wmtp.opening.rewards import ValueData
from wmtp.stage1.frozen_states import FrozenStates
from wmtp.weighting import Critic, Signals
from wmtp.weighting.value_loss import pairwise_loss

HELD_OUT_DOCUMENTS = 512
"""No more are measured at a time, evenly spread."""


def batch_loss(
    job: Job, critic: Critic, head: ValueHead, data: ValueData, states: FrozenStates, step: int
) -> tuple[Tensor, Tensor]:
    """Sum and count of the value loss of one step; a pure function of step and seed."""
    seed, size = job.settings.config.devices.seed, critic.stage1.batch_size
    if data.pairs is None:
        chosen = rows_at(len(data.learned), seed, step * size, size)
        return critic.value_head_loss(*read(head, data.learned, states, chosen))
    good_P, bad_P = data.pairs.pair_at(seed, step * size, size)
    ends_B, whole_B = last_scores(head, states, np.concatenate((good_P, bad_P)))
    return pairwise_loss(ends_B[:size], ends_B[size:], whole_B[:size] & whole_B[size:])


def read(
    head: ValueHead, rows: Rows, states: FrozenStates, rows_B: NDArray[np.int64]
) -> tuple[Tensor, Signals]:
    """Scores of every position of some documents, with their gradient in the head alone."""
    batch = gather_rows(rows, rows_B, horizon=1)
    assert batch.rewards_BSH is not None
    assert batch.last_BSH is not None
    hidden_BSD = pad_sequence([states.all(int(row)) for row in rows_B], batch_first=True)
    longest, device = hidden_BSD.shape[1], hidden_BSD.device
    scores_BS = head.scores(hidden_BSD)
    signals = Signals(
        batch.valid_BSH[:, :longest].to(device),
        values=head.values(scores_BS.detach()),
        rewards=batch.rewards_BSH[:, :longest].to(device),
        last=batch.last_BSH[:, :longest].to(device),
    )
    return scores_BS, signals


def last_scores(
    head: ValueHead, states: FrozenStates, rows_B: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """The score before each document's last wanted token, and whether the row reaches it."""
    ends = [states.end(int(row)) for row in rows_B]
    whole = [end is not None for end in ends]
    nothing_D = states.nothing_D
    hidden_BD = torch.stack([nothing_D if end is None else end for end in ends])
    return head.scores(hidden_BD[:, None])[:, 0], torch.tensor(whole, device=hidden_BD.device)


@torch.no_grad()
def measure_value_head(
    critic: Critic, head: ValueHead, data: ValueData, states: FrozenStates
) -> dict[str, float]:
    """Held-out loss, and how often a right document ends higher than a wrong one.

    Returns:
        ``value/held_out_loss``, ``value/auc`` over pairs within a problem (or over all documents
        where there are no problems) if there are both kinds, and ``value/documents``.

    Raises:
        DivergedError: an estimate is not finite.
    """
    rows, size = data.held_out, critic.stage1.batch_size
    assert rows.rewards is not None
    count = min(len(rows), HELD_OUT_DOCUMENTS)
    chosen = np.arange(count) * len(rows) // count
    rewards_N = np.asarray(rows.rewards.values)[chosen]
    end_N, whole_N = last_scores(head, states, chosen)
    if not end_N.isfinite().all():
        raise DivergedError(
            "the value head's estimates of held-out documents are not finite, as the hidden states "
            "of the trunk are not. Check paths.models.base, or set devices.mixed_precision: fp32."
        )
    usable = whole_N.cpu().numpy() & np.isfinite(rewards_N)
    groups = rows.shards.groups
    groups_N = np.zeros(count, dtype=np.int32) if groups is None else np.asarray(groups)[chosen]
    competes = usable & (groups_N >= 0)  # below 0 a document belongs to no group
    if data.pairs is None:
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, count, size):
            scores_BS, signals = read(head, rows, states, chosen[start : start + size])
            sums += torch.stack(critic.value_head_loss(scores_BS, signals)).double().cpu()
    else:
        sums = torch.stack(all_pairs_loss(end_N, rewards_N, groups_N, competes)).double().cpu()
    figures = {
        "value/held_out_loss": float(sums[0] / sums[1].clamp(min=1)),
        "value/documents": float(usable.sum()),
    }
    ends = end_N.cpu().numpy()
    if has_both_sides(rewards_N[competes], groups_N[competes]):
        figures["value/auc"] = group_auc(ends[competes], rewards_N[competes], groups_N[competes])
    return figures


def all_pairs_loss(
    end_N: Tensor,
    rewards_N: NDArray[np.float32],
    groups_N: NDArray[np.int32],
    usable_N: NDArray[np.bool_],
) -> tuple[Tensor, Tensor]:
    """Sum and count of the pairwise loss over every right and wrong document of one problem.

    Example:
        >>> ends = torch.tensor([0.5, 0.5, 9.0])
        >>> rewards, groups = np.float32([1, 0, 0]), np.int32([4, 4, 5])
        >>> all_pairs_loss(ends, rewards, groups, np.array([True, True, True]))
        (tensor(0.6931), tensor(1.))
    """
    right_N, wrong_N = (
        (rewards_N > CORRECT_ABOVE) & usable_N,
        (rewards_N <= CORRECT_ABOVE) & usable_N,
    )
    pairs = (groups_N[:, None] == groups_N) & right_N[:, None] & wrong_N
    good, bad = (torch.from_numpy(index).to(end_N.device) for index in pairs.nonzero())
    return pairwise_loss(end_N[good], end_N[bad], torch.ones_like(good, dtype=torch.bool))


def has_both_sides(rewards_N: NDArray[np.float32], groups_N: NDArray[np.int32]) -> bool:
    """Whether some group has a document above 0.5 and one that is not."""
    right = rewards_N > CORRECT_ABOVE
    return bool(np.intersect1d(groups_N[right], groups_N[~right]).size)
