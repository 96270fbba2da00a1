"""What is predicted of a run's memory, and what is said where it does not fit."""

from dataclasses import replace

import pytest

from tests.audit.settings import toy_settings
from wmtp import memory_plan
from wmtp.audit import simulate
from wmtp.config import Settings
from wmtp.errors import DeviceError
from wmtp.memory_plan import (
    TILES_HELD,
    MemoryPlan,
    Prediction,
    Shape,
    largest_fitting,
    leaner,
    plan_memory,
    predict,
    shape_of,
)
from wmtp.model.attention import TILE_BYTES
from wmtp.runtime import device as device_module
from wmtp.runtime.device import MemoryLimit, memory_limit

GIBIBYTE = 2**30


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Eight rows of 64 tokens in a step, in one micro-batch."""
    asked = toy_settings(max_length=64)
    return Shape(8, 1, False, "fp32", 64).settings(asked)


@pytest.fixture(scope="module")
def whole(settings: Settings) -> Prediction:
    return predict(settings, "cpu")


def test_req9_a_prediction_names_every_part(whole: Prediction) -> None:
    assert whole.parts["weights"] == 4 * whole.parameters
    # of the only micro-batch of a step, not all are there when activations are at their most
    assert 0 < whole.parts["gradients"] < 4 * whole.parameters
    assert whole.parts["optimizer"] >= 8 * whole.parameters
    assert whole.parts["activations"] > 0 < whole.parts["loss"]
    assert whole.parts["reference"] == 0
    assert "activations" in whole.line()
    assert "reference" not in whole.line()


def test_more_micro_batches_hold_no_more(settings: Settings) -> None:
    """Beside a step that has a third micro-batch: it adds its tokens, which wait on the CPU."""
    three = Shape(2, 3, False, "fp32", 16).settings(settings)
    exact = simulate(three, device_type="cpu", steps=2)
    assert predict(three, "cpu").peak_bytes == pytest.approx(exact.peak_bytes, rel=0.002)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_devices_that_are_not_here_are_planned_for(kind: str, whole: Prediction) -> None:
    asked = Shape(8, 1, False, "fp32", 64).settings(toy_settings(max_length=64))
    found = predict(asked, kind)
    tiles = TILES_HELD * TILE_BYTES if kind == "mps" else 0
    assert found.parts["weights"] == whole.parts["weights"]
    assert found.peak_bytes - tiles == pytest.approx(whole.peak_bytes, rel=0.5)


def limit_of(size: float) -> MemoryLimit:
    return MemoryLimit(int(size), "as tests have it")


def test_req9_a_run_that_fits_is_told_its_largest_micro_batch(
    settings: Settings, whole: Prediction
) -> None:
    plan = plan_memory(settings, "cpu", limit_of(whole.peak_bytes))
    assert plan.fits
    assert plan.largest == shape_of(settings)
    plan.refuse()
    said = "\n".join(plan.lines())
    assert "8 rows of 64 tokens, 1 a step: 512 tokens" in said
    assert "largest fitting  8 rows" in said


@pytest.fixture
def by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions by a rule that a reader can follow: 100 bytes, and 10 or 8 for each row."""

    def predict_by_rule(settings: Settings, kind: str, **_: object) -> Prediction:
        shape = shape_of(settings)
        per_row = 8 if shape.checkpointing else 10
        return Prediction({"weights": 100, "activations": per_row * shape.rows}, 25)

    monkeypatch.setattr(memory_plan, "predict", predict_by_rule)


@pytest.mark.usefixtures("by_rule")
def test_req9_a_run_that_does_not_fit_is_refused_and_told_what_does(settings: Settings) -> None:
    plan = plan_memory(settings, "cpu", limit_of(179))
    with pytest.raises(DeviceError) as caught:
        plan.refuse()
    first, second = str(caught.value).split("\n")
    assert "the run would hold" in first
    assert "as tests have it" in first
    assert "Set data.train.batch_size: 4, train.gradient_accumulation: 2." in second
    assert "train.gradient_checkpointing: true" in second
    assert plan.largest == Shape(4, 2, False, "fp32", 64)  # 100 + 4 * 10; 100 + 8 * 10 is 180


@pytest.mark.usefixtures("by_rule")
def test_what_cannot_fit_in_any_way_says_so(settings: Settings) -> None:
    plan = plan_memory(settings, "cpu", limit_of(107))
    assert plan.largest is None
    with pytest.raises(DeviceError, match="Train a smaller model"):
        plan.refuse()


@pytest.mark.usefixtures("by_rule")
def test_without_a_limit_nothing_is_refused(settings: Settings) -> None:
    plan = plan_memory(settings, "mps", None)
    plan.refuse()
    assert "--memory GB" in plan.lines()[-1]


def test_the_search_finds_the_largest_divisor_that_fits() -> None:
    shape = Shape(12, 2, False, "fp32", 64)
    for most in range(1, 25):
        found = largest_fitting(shape, lambda one, most=most: one.rows <= most)
        assert found is not None
        assert found.rows == max(d for d in (1, 2, 3, 4, 6, 8, 12, 24) if d <= most)
        assert found.rows * found.accumulation == 24
    assert largest_fitting(shape, lambda _: False) is None


def test_leaner_shapes_learn_from_the_same_rows_until_rows_get_shorter() -> None:
    shape = Shape(4, 2, False, "fp32", 512)
    options = list(leaner(shape))
    assert [(o.checkpointing, o.precision, o.length) for o in options] == [
        (True, "fp32", 512), (False, "bf16", 512), (True, "bf16", 512), (True, "fp32", 256),
        (True, "fp32", 128),
    ]  # fmt: skip
    assert shape not in leaner(Shape(4, 2, True, "bf16", 128))
    assert all(o.precision == "fp16" for o in leaner(Shape(4, 2, False, "fp16", 128)))


def test_req9_the_limit_on_a_mac_is_75_percent_of_what_metal_recommends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = memory_limit("mps", 36)
    assert limit is not None
    assert limit.bytes == 0.75 * 27 * GIBIBYTE
    assert limit.reason == "75% of the 27.0 GiB that Metal recommends"
    small = memory_limit("mps", 24)
    assert small is not None
    assert small.bytes == 0.75 * 16 * GIBIBYTE
    assert memory_limit("mps") is None
    monkeypatch.setattr(device_module, "available_kinds", lambda: ("mps", "cpu"))
    monkeypatch.setattr(device_module.torch.mps, "recommended_max_memory", lambda: 8 * GIBIBYTE)
    here = memory_limit("mps")
    assert here is not None
    assert here.bytes == 6 * GIBIBYTE


def test_the_limit_elsewhere_is_nine_tenths() -> None:
    cuda, here = memory_limit("cuda", 80), memory_limit("cpu")
    assert cuda is not None
    assert here is not None
    assert cuda.reason == "90% of the 80.0 GiB of the GPU"
    assert "of the machine" in here.reason


def test_changes_are_written_as_keys_of_the_settings() -> None:
    before = Shape(4, 2, False, "fp32", 512)
    after = Shape(2, 4, True, "bf16", 256)
    assert after.changes(before) == (
        "data.train.batch_size: 2, train.gradient_accumulation: 4, "
        "train.gradient_checkpointing: true, devices.mixed_precision: bf16, "
        "data.train.max_length: 256"
    )
    assert before.changes(before) == ""


def test_a_plan_without_a_fit_has_no_largest_line(settings: Settings, whole: Prediction) -> None:
    plan = MemoryPlan("cpu", shape_of(settings), whole, limit_of(1), None, ())
    assert not any(line.startswith("largest") for line in plan.lines())


def test_where_a_step_is_given_in_tokens_only_the_micro_batch_is_named() -> None:
    """256 tokens are 16 rows of 16, in fours or, where eight fit, in eights."""
    in_tokens = Shape(4, 4, False, "fp32", 16, tokens_per_step=256)
    in_rows = replace(in_tokens, tokens_per_step=None)
    for shape, said in (
        (in_tokens, "data.train.batch_size: 8"),
        (in_rows, "data.train.batch_size: 8, train.gradient_accumulation: 2"),
    ):
        largest = largest_fitting(shape, lambda tried: tried.rows <= 8)
        assert largest is not None
        assert (largest.rows, largest.accumulation, largest.step_rows) == (8, 2, 16)
        assert largest.changes(shape) == said
