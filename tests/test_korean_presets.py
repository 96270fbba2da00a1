"""The Korean presets have the sizes, the steps and the hours that their comments say."""

from pathlib import Path

import pytest
import torch

from wmtp.config import Recipe
from wmtp.config_check import load_settings
from wmtp.model.heads import HeadsShape
from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel
from wmtp.opening.model import heads_shape, trunk_shape

ROOT = Path(__file__).parents[1]

# millions: trunk tied, trunk untied, three further heads; GFLOP of a token of head 0 alone
TABLE = {
    "korean_medium": (397.7, 430.5, 51.9, 2.69),
    "korean_large": (870.3, 919.4, 116.8, 5.67),
}


def recipe_of(name: str, *overrides: str) -> Recipe:
    config = str(ROOT / "configs/local.yaml")
    return load_settings(config, str(ROOT / f"recipes/{name}.yaml"), overrides=overrides).recipe


def model_of(recipe: Recipe, horizon: int | None = None) -> MultiTokenModel:
    """Without memory for its numbers."""
    heads = heads_shape(recipe) if horizon is None else HeadsShape(horizon)
    with torch.device("meta"):
        return MultiTokenModel(LlamaTrunk(trunk_shape(recipe, 0)), heads)


def hours(recipe: Recipe, teraflops: float) -> float:
    """Of all steps, at so many TFLOP/s."""
    length = recipe.data.train.max_length
    assert recipe.train.max_steps is not None
    tokens = recipe.train.max_steps * recipe.rows_per_step * length
    return tokens * model_of(recipe).training_flops_per_token(length) / (teraflops * 1e12) / 3600


@pytest.mark.parametrize("name", TABLE)
def test_parameters_equal_the_table(name: str) -> None:
    tied, untied, heads, gflop = TABLE[name]
    for tie, millions in (("true", tied), ("false", untied)):
        recipe = recipe_of(name, f"recipe.model.tie_embeddings={tie}")
        trunk = model_of(recipe, horizon=1)
        assert trunk.num_parameters / 1e6 == pytest.approx(millions, abs=0.06)
        whole = model_of(recipe).num_parameters
        assert (whole - trunk.num_parameters) / 1e6 == pytest.approx(heads, abs=0.06)
        assert trunk.training_flops_per_token(2048) / 1e9 == pytest.approx(gflop, abs=0.01)
    other = recipe_of(name, "recipe.model.num_layers=23")
    assert model_of(other, horizon=1).num_parameters / 1e6 != pytest.approx(untied, abs=0.06)


@pytest.mark.parametrize(("name", "of_mac"), [("korean_medium", "mac_medium"),
                                              ("korean_large", "mac_large")])  # fmt: skip
def test_a_mac_has_the_same_model_but_for_tying(name: str, of_mac: str) -> None:
    untied = {"tie_embeddings": False}
    on_mac = recipe_of(of_mac).model.model_copy(update=untied)
    assert recipe_of(name).model == on_mac
    assert recipe_of(name).model != recipe_of("korean_mac").model


@pytest.mark.parametrize("name", ["korean_small", "korean_medium", "korean_large", "korean_mac"])
def test_presets_have_four_heads_that_every_engine_can_serve(name: str) -> None:
    recipe = recipe_of(name)
    assert (recipe.model.heads.kind, recipe.model.heads.horizon) == ("sequential", 4)
    assert recipe.model.qk_norm
    assert recipe.model.dropout == 0
    assert recipe.optim.scheduler == "wsd"
    # tied below 300M parameters
    assert recipe.model.tie_embeddings == (model_of(recipe).num_parameters < 300e6)


def test_marks_are_those_of_the_goals() -> None:
    medium, large = (recipe_of(name).evaluation.marks for name in TABLE)
    assert (medium.bits_per_byte, medium.tokens_per_second) == (0.685, 50)
    assert (large.bits_per_byte, large.tokens_per_second) == (0.629, 30)


def test_the_hours_that_the_comments_say() -> None:
    for name, parameters, one_gpu in (
        ("korean_medium", 482.4e6, 66),
        ("korean_large", 1036.2e6, 133),
    ):
        recipe = recipe_of(name)
        assert model_of(recipe).num_parameters == pytest.approx(parameters, abs=1e5)
        assert recipe.rows_per_step == 256
        assert recipe.rows_per_step % (8 * recipe.micro_batch_rows) == 0  # on eight GPUs too
        assert hours(recipe, 400) == pytest.approx(one_gpu, rel=0.01)
        text = (ROOT / f"recipes/{name}.yaml").read_text()
        assert f"that is {one_gpu} hours on one GPU" in text


def test_a_mac_finishes_within_22_hours() -> None:
    """Tokens times FLOP of a token over half of the 11 TFLOP/s of an M4 Max's products."""
    recipe = recipe_of("korean_mac")
    model = model_of(recipe)
    assert model.num_parameters == pytest.approx(40.8e6, abs=1e5)
    assert model.training_flops_per_token(1024) == pytest.approx(427e6, rel=0.001)
    assert 7600 * recipe.rows_per_step * 1024 == pytest.approx(996e6, rel=0.001)
    assert hours(recipe, 5.5) == pytest.approx(21.5, abs=0.05)
    assert hours(recipe, 5.5) < 22 < hours(recipe_of("korean_medium"), 5.5)
    alone = model_of(recipe, horizon=1).training_flops_per_token(1024)
    assert 0.45 < alone / model.training_flops_per_token(1024) < 0.5


def test_the_small_one_is_for_minutes_on_a_cpu() -> None:
    recipe = recipe_of("korean_small")
    assert model_of(recipe).num_parameters == pytest.approx(6.6e6, abs=1e5)
    assert model_of(recipe, horizon=1).num_parameters == pytest.approx(4.0e6, abs=1e5)
    tokens = 900 * recipe.rows_per_step * recipe.data.train.max_length
    assert tokens == pytest.approx(3.69e6, rel=0.001)
    assert recipe.train.max_steps == 900
    flop = model_of(recipe).training_flops_per_token(recipe.data.train.max_length)
    assert flop == pytest.approx(64e6, rel=0.001)
