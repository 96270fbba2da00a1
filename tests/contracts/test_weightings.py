"""What every shipped weighting promises, whatever its options."""

from typing import Any

import pytest
import torch

from wmtp.weighting import ALGORITHMS, Signals, Weighting, weigh_chunk

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("baseline-mtp", {}),
    ("column", {}),
    ("rho1-wmtp", {}),
    ("rho1-wmtp", {"score": "absolute", "min_ce_diff": 0.2}),
    ("rho1-wmtp", {"compete": "heads"}),
    ("rho1-wmtp", {"compete": "heads", "center": "none"}),
    ("rho1-wmtp", {"mode": "token_skip"}),
]


def make(name: str, options: dict[str, Any]) -> Weighting:
    return ALGORITHMS[name](**options)


def make_signals() -> tuple[Signals, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ce, reference, column = (torch.rand(4, 12, 3, generator=generator) * 4 for _ in range(3))
    valid = torch.rand(4, 12, 3, generator=generator) > 0.3
    valid[3] = False
    return Signals(valid, reference_ce=reference, loss_weights=column), ce


def test_every_algorithm_is_held_to_the_contract() -> None:
    assert {name for name, _ in OPTIONS} == set(ALGORITHMS)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_mean_one_over_each_row_and_nothing_where_invalid(
    name: str, options: dict[str, Any]
) -> None:
    weighting = make(name, options)
    signals, ce = make_signals()
    part: slice = slice(0, 48) if weighting.scope == "token" else slice(0, 4)
    given = ce.view(1, 48, 3) if weighting.scope == "token" else ce
    weights = weigh_chunk(weighting, signals, given, part).view(4, 12, 3)
    valid = signals.valid_BSH
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert not weights[~valid].any()
    means = weights[:3].sum((1, 2)) / valid[:3].sum((1, 2))
    torch.testing.assert_close(means, torch.ones(3))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_chunks_of_its_scope_give_the_weights_of_the_whole(
    name: str, options: dict[str, Any]
) -> None:
    weighting = make(name, options)
    signals, ce = make_signals()
    if weighting.scope == "token":
        flat = ce.view(1, 48, 3)
        whole = weigh_chunk(weighting, signals, flat, slice(0, 48))
        chosen = torch.tensor([0, 5, 6, 40])
        parts = weigh_chunk(weighting, signals, flat[:, chosen], chosen)
        torch.testing.assert_close(parts, whole[:, chosen])
        return
    whole = weigh_chunk(weighting, signals, ce, slice(0, 4))
    parts = [weigh_chunk(weighting, signals, ce[i : i + 1], slice(i, i + 1)) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_weights_carry_no_gradient(name: str, options: dict[str, Any]) -> None:
    weighting = make(name, options)
    signals, ce = make_signals()
    ce.requires_grad_()
    part: slice = slice(0, 48) if weighting.scope == "token" else slice(0, 4)
    given = ce.view(1, 48, 3) if weighting.scope == "token" else ce
    assert not weigh_chunk(weighting, signals, given, part).requires_grad
