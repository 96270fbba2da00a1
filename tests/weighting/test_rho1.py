import math

import pytest
import torch
from torch import Tensor

from wmtp.weighting import Rho1, Signals
from wmtp.weighting.rho1 import kept_weights, softmax_weights


def random_signals(seed: int, B: int = 3, S: int = 20, H: int = 4, spread: float = 3.0) -> Signals:
    generator = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.rand(B, S, H, generator=generator)

    return Signals(random() > 0.2, random() * spread, random() * spread)


def row_means(weights: Tensor, valid: Tensor) -> Tensor:
    return weights.sum((1, 2)) / valid.sum((1, 2))


MODES = [
    {"mode": "weighted"},
    {"mode": "weighted", "compete": "heads"},
    {"mode": "weighted", "compete": "heads", "center": "none"},
    {"mode": "weighted", "score": "absolute", "temperature": 0.1},
    {"mode": "token_skip"},
    {"mode": "token_skip", "score": "absolute", "skip_fraction": 0.71},
]


@pytest.mark.parametrize("spread", [0.0, 3.0, 300.0])
@pytest.mark.parametrize("fields", MODES, ids=str)
def test_weights_have_mean_one_in_each_row_and_are_zero_where_invalid(
    fields: dict[str, str], spread: float
) -> None:
    signals = random_signals(0, spread=spread)
    weights = Rho1(**fields).weights(signals)
    torch.testing.assert_close(row_means(weights, signals.valid_BSH), torch.ones(3))
    assert not weights[~signals.valid_BSH].any()
    assert (weights >= 0).all()


@pytest.mark.parametrize("cap", [1.0, 1.3, 5.0])
@pytest.mark.parametrize("spread", [1.0, 1000.0])
def test_cap_holds_even_when_the_softmax_underflows(cap: float, spread: float) -> None:
    signals = random_signals(1, spread=spread)
    weights = Rho1(max_weight=cap).weights(signals)
    assert weights.max() <= cap + 1e-6
    torch.testing.assert_close(row_means(weights, signals.valid_BSH), torch.ones(3))


def test_cap_agrees_with_water_filling() -> None:
    """Plain Python: cap the largest k until the rest, scaled to fill up, stays below the cap."""
    score = torch.randn(200, generator=torch.Generator().manual_seed(2)) * 2
    n, cap = len(score), 2.5
    p = (n * torch.softmax(score.double(), 0)).sort(descending=True).values.tolist()
    capped = next(k for k in range(n) if (n - k * cap) / math.fsum(p[k:]) * p[k] <= cap)
    c = (n - capped * cap) / math.fsum(p[capped:])
    expected = [min(cap, c * x) for x in p]
    found = softmax_weights(score, torch.ones(n, dtype=torch.bool), 1.0, cap)
    torch.testing.assert_close(
        found.sort(descending=True).values, torch.tensor(expected), atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("n", [1, 2, 7, 10, 50, 100])
@pytest.mark.parametrize("percent", [0, 1, 10, 29, 30, 57, 99])
def test_token_skip_keeps_exactly_n_minus_floor_of_the_fraction(n: int, percent: int) -> None:
    score = torch.randn(1, n, 1, generator=torch.Generator().manual_seed(n))
    weights = kept_weights(score, torch.ones(1, n, 1, dtype=torch.bool), percent / 100)
    keep = n - n * percent // 100
    assert int((weights > 0).sum()) == keep
    assert weights.max().item() == pytest.approx(n / keep)
    lowest_kept = score[weights > 0].min()
    assert (score[weights == 0] <= lowest_kept).all()


def test_token_skip_breaks_ties_by_position_then_head() -> None:
    weights = kept_weights(torch.zeros(1, 3, 2), torch.ones(1, 3, 2, dtype=torch.bool), 0.5)
    assert (weights.flatten() > 0).tolist() == [True, True, True, False, False, False]


def test_heads_competing_alone_keep_the_total_of_each_position() -> None:
    signals = random_signals(3)
    weights = Rho1(compete="heads").weights(signals)
    torch.testing.assert_close(weights.sum(-1), signals.valid_BSH.sum(-1).float())


def test_a_reference_that_equals_the_model_scores_zero_everywhere() -> None:
    signals = random_signals(4)
    same = Signals(signals.valid_BSH, signals.ce, signals.ce)
    for fields in MODES:
        weighting = Rho1(**fields)
        assert not weighting.scores(same).any()
        if weighting.mode == "weighted":
            torch.testing.assert_close(weighting.weights(same), same.valid_BSH.float())


def test_a_row_without_valid_targets_gets_no_weight_and_no_nan() -> None:
    signals = random_signals(5)
    valid = signals.valid_BSH.clone()
    valid[1] = False
    for fields in MODES:
        weights = Rho1(**fields).weights(Signals(valid, signals.ce, signals.reference_ce))
        assert torch.isfinite(weights).all()
        assert not weights[1].any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_half_precision_scores_move_weights_by_at_most_the_promise(temperature: float) -> None:
    signals = random_signals(6, S=200, spread=12.0)
    rounded = Signals(signals.valid_BSH, signals.ce, signals.reference_ce_BSH.half().float())
    weighting = Rho1(temperature=temperature)
    difference = weighting.weights(signals) - weighting.weights(rounded)
    assert difference.abs().max() <= 5 * 5e-3 / temperature  # relative, and a weight is at most 5


def test_scope_is_token_only_when_no_mean_over_the_row_is_needed() -> None:
    assert Rho1().scope == "sequence"
    assert Rho1(mode="token_skip").scope == "sequence"
    assert Rho1(compete="heads").scope == "sequence"
    assert Rho1(compete="heads", center="none").scope == "token"
