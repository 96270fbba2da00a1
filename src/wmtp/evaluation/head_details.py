"""Each head under the glass: cross-entropy, top-1, top-5 and calibration on the same targets."""

import math
from collections.abc import Iterable
from typing import Any, Final, final

import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.device import Device

TOP: Final = 5
BINS: Final = 15
_NUMBERS_AT_ONCE: Final = 1 << 24
"""Logits held at a time."""


@final
class HeadDetails:
    """Sums of one head over any number of batches.

    Attributes:
        row_nats: summed cross-entropy of each row.
        row_targets: targets of each row.
    """

    def __init__(self) -> None:
        self.row_nats: list[float] = []
        self.row_targets: list[int] = []
        self._hits = self._top = 0
        self._bins_K3 = torch.zeros(BINS, 3, dtype=torch.float64)  # count, confidence, hits

    def add(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Count some targets.

        Args:
            logits_NV: float32 ``[N, V]``; overwritten.
            targets_N: int64.

        Returns:
            Cross-entropy of each target, nats ``[N]``.
        """
        target_N1 = logits_NV.gather(1, targets_N[:, None])
        rank_N = (logits_NV > target_N1).sum(1)
        top_N = logits_NV.amax(1)
        total_N = logits_NV.logsumexp(1)
        confidence_N = (top_N - total_N).exp().double().cpu()
        hits_N = (rank_N == 0).cpu()
        self._hits += int(hits_N.sum())
        self._top += int((rank_N < TOP).sum())
        place_N = (confidence_N * BINS).long().clamp(max=BINS - 1)
        parts_N3 = torch.stack((torch.ones_like(confidence_N), confidence_N, hits_N.double()), 1)
        self._bins_K3.index_add_(0, place_N, parts_N3)
        return total_N - target_N1.squeeze(1)

    def figures(self, head: int) -> dict[str, float]:
        """Mean cross-entropy in nats, shares of hits, and the expected calibration error.

        The last is the mean gap between how sure the head is of its likeliest token and how often
        that is right, over 15 bins of confidence.

        Source:
            Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599).
        """
        count = sum(self.row_targets)
        if not count:
            return {}
        gaps_K = (self._bins_K3[:, 1] - self._bins_K3[:, 2]).abs()
        return {
            f"ce/head_{head}": math.fsum(self.row_nats) / count,
            f"accuracy/head_{head}": self._hits / count,
            f"top{TOP}_accuracy/head_{head}": self._top / count,
            f"calibration_error/head_{head}": float(gaps_K.sum()) / count,
        }


@torch.no_grad()
def measure_head_details(
    model: MultiTokenModel,
    batches: Iterable[Batch],
    device: Device,
    head_scale: tuple[float, ...],
) -> dict[str, Any]:
    """Held-out figures of every head, in evaluation mode.

    Returns:
        ``loss`` (all weights 1), ``perplexity`` of head 0, the figures of ``HeadDetails`` for each
        head, and ``each``: nats and targets of each row, for comparisons. Empty if nothing is
        valid.
    """
    details = [HeadDetails() for _ in range(model.horizon)]
    matrices = model.unembeddings * (model.horizon if len(model.unembeddings) == 1 else 1)
    at_once = max(1, _NUMBERS_AT_ONCE // model.trunk_shape.vocab_size)
    was_training = model.training
    model.eval()
    for batch in batches:
        here = batch.to(device.torch_device)
        with device.autocast():
            hidden = model(here.tokens_BS, here.targets_BSH, here.documents_BS)
        for head, (one, hidden_BSD, matrix_VD) in enumerate(
            zip(details, hidden, matrices, strict=True)
        ):
            ce_BS = torch.zeros(here.tokens_BS.shape, dtype=torch.float64)
            valid_BS = here.valid_BSH[:, :, head]
            places_N2 = valid_BS.nonzero()
            for some_N2 in places_N2.split(at_once):  # type: ignore[no-untyped-call]
                rows, columns = some_N2.unbind(1)
                with device.autocast():
                    logits_NV = hidden_BSD[rows, columns] @ matrix_VD.T
                ce_N = one.add(logits_NV.float(), here.targets_BSH[rows, columns, head])
                ce_BS[rows.cpu(), columns.cpu()] = ce_N.double().cpu()
            one.row_nats += ce_BS.sum(1).tolist()
            one.row_targets += valid_BS.sum(1).tolist()
    model.train(was_training)
    targets = [sum(one.row_targets) for one in details]
    weight = math.fsum(c * n for c, n in zip(head_scale, targets, strict=True))
    if not weight:
        return {}
    nats = [math.fsum(one.row_nats) for one in details]
    figures = {name: f for head, one in enumerate(details) for name, f in one.figures(head).items()}
    return {
        "loss": math.fsum(c * n for c, n in zip(head_scale, nats, strict=True)) / weight,
        "perplexity": math.exp(min(figures["ce/head_0"], 700.0)),
        **figures,
        "each": {
            f"head_{head}": {"nats": one.row_nats, "targets": one.row_targets}
            for head, one in enumerate(details)
        },
    }
