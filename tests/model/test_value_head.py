import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import wmtp
from wmtp.errors import CheckpointError
from wmtp.model.value_head import (
    ValueHead,
    build_value_head,
    load_value_head,
    read_value_head_facts,
    save_value_head,
)

FACTS: dict[str, Any] = {
    "value_loss": "mse",
    "trunk": "abc",
    "reward": "pairs",
    "held_out_auc": 0.7,
}


def trained_head(output: str = "linear") -> ValueHead:
    """A head whose every number is random, as training leaves it."""
    head = build_value_head(8, output, seed=0)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return head


def hidden(scale: float = 1.0) -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2)) * scale


@pytest.mark.parametrize(("output", "expected"), [("linear", 0.0), ("sigmoid", 0.5)])
def test_a_new_head_claims_nothing(output: str, expected: float) -> None:
    values = build_value_head(8, output, seed=0)(hidden())  # type: ignore[arg-type]
    assert values.shape == (2, 5)
    assert values.dtype == torch.float32
    assert (values == expected).all()


def test_a_new_head_depends_on_the_seed_alone() -> None:
    one, same, other = (build_value_head(8, "linear", seed=s).inner.weight for s in (3, 3, 4))
    assert one.equal(same)
    assert not one.equal(other)


def test_a_new_head_can_learn() -> None:
    """A zero last map must not keep gradients from it."""
    head = build_value_head(8, "linear", seed=0)
    (head(hidden()) - 1).square().sum().backward()
    assert head.outer.weight.grad is not None
    assert head.outer.weight.grad.any()


def test_values_follow_the_formula() -> None:
    head, x = trained_head(), hidden().double()
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    inner = normed @ head.inner.weight.double().T + head.inner.bias
    expected = (inner * inner.sigmoid()) @ head.outer.weight.double().T + head.outer.bias
    # float32 against float64, sums of 8 terms
    torch.testing.assert_close(head(hidden()).double(), expected.squeeze(2), atol=1e-5, rtol=1e-5)


def test_a_sigmoid_head_gives_probabilities_of_its_scores() -> None:
    head = trained_head("sigmoid")
    scores = head.scores(hidden())
    torch.testing.assert_close(head(hidden()), scores.sigmoid())
    assert head.values(scores).equal(head(hidden()))


def test_autocast_and_the_size_of_the_hidden_state_change_nothing() -> None:
    head = trained_head()
    expected = head(hidden())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(hidden()).equal(expected)
    torch.testing.assert_close(head(hidden(1000.0)), expected, atol=1e-4, rtol=1e-4)  # eps of norm


def test_the_caller_decides_whether_the_trunk_learns() -> None:
    x = hidden().requires_grad_()
    trained_head()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_a_saved_head_comes_back_to_the_last_bit(tmp_path: Path, output: str) -> None:
    head = trained_head(output)
    save_value_head(head, tmp_path / "head", FACTS)
    loaded = load_value_head(tmp_path / "head", 8, output)  # type: ignore[arg-type]
    assert loaded(hidden()).equal(head(hidden()))
    assert read_value_head_facts(tmp_path / "head") == {
        **FACTS,
        "hidden_size": 8,
        "output": output,
        "wmtp": wmtp.__version__,
    }


def test_a_fact_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_value_head(trained_head(), tmp_path / "head", {"held_out_auc": float("nan")})
    assert not (tmp_path / "head").exists()


def damaged(folder: Path, name: str) -> None:
    save_value_head(trained_head(), folder, FACTS)
    weights, facts = folder / "value_head.safetensors", folder / "value_head.json"
    match name:
        case "no weights":
            weights.unlink()
        case "no facts":
            facts.unlink()
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:-7])
        case "torn facts":
            facts.write_text(facts.read_text()[:-7])
        case "facts are a list":
            facts.write_text("[1]")
        case "facts without a shape":
            facts.write_text(json.dumps(FACTS))
        case "a tensor less":
            save_file({k: v for k, v in load_file(weights).items() if k != "outer.bias"}, weights)
        case "another width":
            save_file({k: v[:1].contiguous() for k, v in load_file(weights).items()}, weights)
        case "not finite":
            tensors = load_file(weights)
            tensors["outer.bias"] += torch.nan
            save_file(tensors, weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no weights", "is no value head: it has no value_head.safetensors"),
        ("no facts", "is no value head: it has no value_head.json"),
        ("torn weights", "is not a whole safetensors file"),
        ("torn facts", "value_head.json cannot be read"),
        ("facts are a list", "is not a description of a value head"),
        ("facts without a shape", "has hidden_size None, but this run needs 8"),
        ("a tensor less", "which is no value head of width 8"),
        ("another width", "which is no value head of width 8"),
        ("not finite", "outer.bias has numbers that are not finite"),
    ],
)
def test_a_damaged_head_is_refused_in_one_line(tmp_path: Path, damage: str, message: str) -> None:
    damaged(tmp_path / "head", damage)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_value_head(tmp_path / "head", 8, "linear")
    assert "\n" not in str(caught.value)


def test_a_head_for_another_model_or_loss_is_refused(tmp_path: Path) -> None:
    save_value_head(trained_head(), tmp_path, FACTS)
    with pytest.raises(CheckpointError, match="has hidden_size 8, but this run needs 16"):
        load_value_head(tmp_path, 16, "linear")
    with pytest.raises(CheckpointError, match="has output 'linear', but this run needs 'sigmoid'"):
        load_value_head(tmp_path, 8, "sigmoid")


def test_a_folder_that_is_not_there_or_is_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head.pt").write_bytes(b"\x80\x02.")
    for path in (tmp_path / "gone", tmp_path / "head.pt"):
        with pytest.raises(CheckpointError, match="is no value head"):
            load_value_head(path, 8, "linear")
