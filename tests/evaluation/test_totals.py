import math

import pytest
import torch

from wmtp.evaluation.totals import HeadTotals, WeightTotals
from wmtp.runtime.device import choose_device

CPU = choose_device("cpu", "fp32")
VALID = torch.tensor([[[1, 1], [1, 0]]], dtype=torch.bool)


def test_cross_entropy_and_accuracy_are_means_over_each_heads_own_targets() -> None:
    totals = HeadTotals(2, CPU)
    ce = torch.tensor([[[1.0, 4.0], [3.0, 99.0]]])
    correct = torch.tensor([[[True, False], [False, True]]])
    totals.add(ce, correct, VALID)
    assert totals.figures() == {
        "ce/head_0": 2.0,
        "accuracy/head_0": 0.5,
        "ce/head_1": 4.0,
        "accuracy/head_1": 0.0,
    }
    # (1 * (1 + 3) + 0.5 * 4) / (1 * 2 + 0.5 * 1)
    assert totals.mean_loss((1.0, 0.5)) == pytest.approx(6 / 2.5)


def test_a_head_without_targets_is_absent_and_not_invented() -> None:
    totals = HeadTotals(2, CPU)
    totals.add(torch.ones(1, 1, 2), torch.ones(1, 1, 2).bool(), torch.tensor([[[True, False]]]))
    assert totals.figures().keys() == {"ce/head_0", "accuracy/head_0"}
    assert HeadTotals(2, CPU).figures() == {}
    assert HeadTotals(2, CPU).mean_loss((1.0, 1.0)) is None


def test_number_of_batches_does_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    ce = torch.rand(8, 5, 3, generator=generator)
    valid = torch.rand(8, 5, 3, generator=generator) > 0.3
    whole, parts = HeadTotals(3, CPU), HeadTotals(3, CPU)
    whole.add(ce, valid, valid)
    for i in range(8):
        parts.add(ce[i : i + 1], valid[i : i + 1], valid[i : i + 1])
    assert whole.figures() == pytest.approx(parts.figures(), rel=1e-12)


def test_weight_statistics_of_a_case_worked_by_hand() -> None:
    totals = WeightTotals(2, CPU)
    totals.add(torch.tensor([[[2.0, 1.0], [0.0, 0.0]]]), VALID)
    figures = totals.figures()
    assert figures["weights/mean"] == 1
    assert figures["weights/std"] == pytest.approx(math.sqrt((1 + 0 + 1) / 3))
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert figures["weights/entropy"] == pytest.approx(entropy)
    assert figures["weights/kept_fraction"] == pytest.approx(2 / 3)
    assert figures["weights/head_0"] == 1
    assert figures["weights/head_1"] == 1
