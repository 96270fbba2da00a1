"""Every head's figures against the plain formula over all logits."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.toys import KINDS, toy_model
from wmtp.data.batches import Batch
from wmtp.evaluation.head_details import HeadDetails, measure_head_details
from wmtp.evaluation.held_out import measure_heads
from wmtp.loss import Workspace
from wmtp.runtime.device import choose_device

CPU = choose_device("cpu", "fp32")
SCALE = (1.0, 0.3, 0.3, 0.3)


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, length in ((2, 9), (3, 5)):
        stream_BT = torch.randint(0, 64, (rows, length + 4), generator=generator)
        valid_BSH = torch.rand(rows, length, 4, generator=generator) < 0.7
        targets_BSH = stream_BT[:, 1:].unfold(1, 4, 1)[:, :length]
        found.append(batch(stream_BT[:, :length], targets_BSH, valid_BSH))
    return found


def batch(tokens_BS: Tensor, targets_BSH: Tensor, valid_BSH: Tensor) -> Batch:
    return Batch(
        tokens_BS,
        targets_BSH,
        valid_BSH,
        documents_BS=None,
        reference_ce_BSH=None,
        loss_weights_BSH=None,
        valid_counts_H=tuple(valid_BSH.sum((0, 1)).tolist()),
        rows=range(len(tokens_BS)),
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_figures_are_those_of_all_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmtp.evaluation.head_details._NUMBERS_AT_ONCE", 64 * 3)  # 3 at a time
    model = toy_model(4, kind=kind).eval()
    found = measure_head_details(model, batches(), CPU, SCALE)
    logits_NHV = torch.cat([
        model.logits(b.tokens_BS, b.targets_BSH).flatten(0, 1) for b in batches()
    ])  # fmt: skip
    targets_NH = torch.cat([b.targets_BSH.flatten(0, 1) for b in batches()])
    valid_NH = torch.cat([b.valid_BSH.flatten(0, 1) for b in batches()])
    for head in range(4):
        logits_NV = logits_NHV[valid_NH[:, head], head].double()
        targets_N = targets_NH[valid_NH[:, head], head]
        ce = F.cross_entropy(logits_NV, targets_N).item()
        assert found[f"ce/head_{head}"] == pytest.approx(ce, rel=1e-5)
        likely_N5 = logits_NV.topk(5).indices
        hits = (likely_N5 == targets_N[:, None]).any(1).double().mean().item()
        assert found[f"top5_accuracy/head_{head}"] == pytest.approx(hits)
        each = found["each"][f"head_{head}"]
        assert len(each["nats"]) == len(each["targets"]) == 5
        assert sum(each["nats"]) / sum(each["targets"]) == pytest.approx(ce, rel=1e-5)
    old = measure_heads(model, batches(), CPU, SCALE, Workspace())
    assert {name: found[name] for name in old} == pytest.approx(old, rel=1e-5)


def test_calibration_by_hand() -> None:
    """Sure to 0.8 four times and right three times; sure to 0.6 five times and right five times."""
    one = HeadDetails()
    sure = torch.tensor([[0.8, 0.2]]).log().expand(4, 2)
    less = torch.tensor([[0.4, 0.6]]).log().expand(5, 2)
    nats = one.add(sure.clone(), torch.tensor([0, 0, 0, 1]))
    one.add(less.clone(), torch.ones(5, dtype=torch.int64))
    one.row_nats, one.row_targets = [1.0], [9]
    figures = one.figures(2)
    assert nats.tolist() == pytest.approx([-math.log(p) for p in (0.8, 0.8, 0.8, 0.2)])
    assert figures["calibration_error/head_2"] == pytest.approx((4 * 0.05 + 5 * 0.4) / 9)
    assert figures["accuracy/head_2"] == pytest.approx(8 / 9)
    assert figures["top5_accuracy/head_2"] == 1.0


def test_nothing_valid_is_nothing_measured() -> None:
    one, _ = batches()
    empty = batch(one.tokens_BS, one.targets_BSH, torch.zeros_like(one.valid_BSH))
    assert measure_head_details(toy_model(4), [empty], CPU, SCALE) == {}
