"""What every shipped weighting promises, whatever its options."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.weighting import ALGORITHMS, Signals, Weighting, observe, remember, weigh_chunk
from wmtp.weighting.base import weights_of

ALONE: list[tuple[str, dict[str, Any]]] = [
    ("baseline-mtp", {}),
    ("column", {}),
    ("critic-wmtp", {}),
    ("critic-wmtp", {"beta": 0.01, "clip": 20.0}),
    ("critic-wmtp", {"gae_lambda": 0.0, "value_loss": "mse", "spread": "uniform"}),
    ("rho1-wmtp", {}),
    ("rho1-wmtp", {"score": "absolute", "min_ce_diff": 0.2}),
    ("rho1-wmtp", {"compete": "heads"}),
    ("rho1-wmtp", {"compete": "heads", "center": "none"}),
    ("rho1-wmtp", {"mode": "token_skip"}),
]
CONTROLS = ("shuffled", "random_matched")
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *ALONE,
    *((control, {"around": inner}) for control in CONTROLS for inner in ALONE),
    ("shuffled", {"around": ("random_matched", {"around": ("rho1-wmtp", {})})}),
    ("random_matched", {"around": ("shuffled", {"around": ("critic-wmtp", {})})}),
]


def make(name: str, options: dict[str, Any]) -> Weighting:
    inner = {"around": make(*options["around"])} if "around" in options else {}
    return ALGORITHMS[name](**{**options, **inner})


def make_signals(weighting: Weighting, seed: int = 0) -> tuple[Signals, Tensor]:
    """Four packed rows; the last has no valid target, the third no reward."""
    generator = torch.Generator().manual_seed(seed)
    ce, reference, column = (torch.rand(4, 12, 3, generator=generator) * 4 for _ in range(3))
    valid = torch.rand(4, 12, 3, generator=generator) > 0.3
    valid[3] = False
    values = torch.randn(4, 12, generator=generator)
    rewards_BT = torch.rand(4, 14, generator=generator)
    rewards_BT[2] = torch.nan
    last_BT = torch.rand(4, 14, generator=generator) > 0.8
    signals = Signals(
        valid,
        reference_ce=reference,
        loss_weights=column,
        values=values,
        rewards=rewards_BT.unfold(1, 3, 1),
        last=last_BT.unfold(1, 3, 1),
        memory=weighting.start_memory(),
        sums=weighting.start_sums(),
    )
    return signals, ce


def weigh(weighting: Weighting, signals: Signals, ce: Tensor) -> Tensor:
    """The weights of whole rows, asked for as the loss would."""
    if weighting.scope == "token":
        return weigh_chunk(weighting, signals, ce.view(1, 48, 3), slice(0, 48)).view(4, 12, 3)
    given = None if weighting.scope == "known" else ce
    return weigh_chunk(weighting, signals, given, slice(0, 4))


def take_step(weighting: Weighting, signals: Signals, ce: Tensor, micro_batches: int = 1) -> None:
    """What the loop does to a weighting in one step, all of whose micro-batches are the same."""
    for _ in range(micro_batches):
        weigh(weighting, signals, ce)
        observe(weighting, observed(signals, ce))
    remember(weighting, signals.memory, signals.sums)
    for tensor in signals.sums.values():
        tensor.zero_()


def observed(signals: Signals, ce: Tensor) -> Signals:
    return Signals(**{**vars(signals), "ce": ce})


def test_every_algorithm_is_held_to_the_contract() -> None:
    assert {name for name, _ in OPTIONS} == set(ALGORITHMS)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_mean_one_over_each_row_and_nothing_where_invalid(
    name: str, options: dict[str, Any], steps: int
) -> None:
    weighting = make(name, options)
    signals, ce = make_signals(weighting)
    for _ in range(steps):
        take_step(weighting, signals, ce, micro_batches=2)
    weights = weigh(weighting, signals, ce)
    valid = signals.valid_BSH
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert not weights[~valid].any()
    means = weights[:3].sum((1, 2)) / valid[:3].sum((1, 2))
    torch.testing.assert_close(means, torch.ones(3))
    assert all(torch.isfinite(tensor).all() for tensor in signals.memory.values())


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_a_step_without_valid_targets_leaves_no_trace(name: str, options: dict[str, Any]) -> None:
    weighting = make(name, options)
    signals, ce = make_signals(weighting)
    take_step(weighting, signals, ce)
    before = {key: tensor.clone() for key, tensor in signals.memory.items()}
    nothing = Signals(**{**vars(signals), "valid_BSH": torch.zeros_like(signals.valid_BSH)})
    assert not weigh(weighting, nothing, ce).any()
    take_step(weighting, nothing, ce)
    assert all(signals.memory[key].equal(tensor) for key, tensor in before.items())


ASKED_IN_PARTS = [one for one in ALONE if make(*one).scope != "known"]


@pytest.mark.parametrize(("name", "options"), ASKED_IN_PARTS, ids=str)
def test_chunks_of_its_scope_give_the_weights_of_the_whole(
    name: str, options: dict[str, Any]
) -> None:
    weighting = make(name, options)
    signals, ce = make_signals(weighting)
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
def test_weights_and_memory_carry_no_gradient(name: str, options: dict[str, Any]) -> None:
    weighting = make(name, options)
    signals, ce = make_signals(weighting)
    ce.requires_grad_()
    assert signals.values is not None
    signals.values.requires_grad_()
    assert not weigh(weighting, signals, ce).requires_grad
    observe(weighting, observed(signals, ce))
    assert not any(tensor.requires_grad for tensor in signals.memory.values())


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_memory_changes_in_place_at_the_end_of_a_step(name: str, options: dict[str, Any]) -> None:
    """The loop saves the tensors it was given: a weighting that made new ones would lose them.

    And a micro-batch that changed them would do so on one rank alone.
    """
    weighting = make(name, options)
    signals, ce = make_signals(weighting)
    memory, sums = dict(signals.memory), dict(signals.sums)
    weigh(weighting, signals, ce)
    observe(weighting, observed(signals, ce))
    assert all(tensor.equal(weighting.start_memory()[key]) for key, tensor in memory.items())
    assert bool(memory) == bool(sums) == any(tensor.any() for tensor in sums.values())
    remember(weighting, signals.memory, signals.sums)
    assert signals.memory.keys() == memory.keys() == weighting.start_memory().keys()
    assert all(signals.memory[key] is tensor for key, tensor in memory.items())
    assert all(signals.sums[key] is tensor for key, tensor in sums.items())
    assert bool(memory) == any(tensor.any() for tensor in memory.values())


@pytest.mark.parametrize(
    ("name", "options"), [one for one in OPTIONS if "random_matched" not in str(one)], ids=str
)
def test_how_a_step_is_cut_changes_nothing(name: str, options: dict[str, Any]) -> None:
    """Rows one by one, as on four ranks, or all at once."""
    weighting = make(name, options)
    signals, ce = make_signals(weighting)
    whole = {key: tensor.clone() for key, tensor in signals.memory.items()}
    torch.manual_seed(0)
    weigh(weighting, signals, ce)
    observe(weighting, observed(signals, ce))
    remember(weighting, whole, signals.sums)
    for tensor in signals.sums.values():
        tensor.zero_()
    for i in range(4):
        row = signals.of_rows(slice(i, i + 1), ce[i : i + 1])
        weights_of(weighting, row if weighting.scope != "token" else in_one_row(row))
        observe(weighting, row)
    remember(weighting, signals.memory, signals.sums)
    for key, tensor in signals.memory.items():
        torch.testing.assert_close(tensor, whole[key])


def in_one_row(signals: Signals) -> Signals:
    """As scope ``token`` is asked."""
    return signals.of_positions(slice(None), signals.ce_BSH.flatten(0, 1).unsqueeze(0))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_random_numbers_and_memory_decide_the_weights(name: str, options: dict[str, Any]) -> None:
    """Resuming puts both back, and then the weights are the same to the last bit."""
    weighting = make(name, options)
    runs = []
    for _ in range(2):
        signals, ce = make_signals(weighting)
        torch.manual_seed(5)
        for _ in range(2):
            take_step(weighting, signals, ce)
        runs.append(weigh(weighting, signals, ce))
    assert runs[0].equal(runs[1])
