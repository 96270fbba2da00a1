"""Requirements 1 to 5 of training on Apple's GPUs, on a simulated one."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.audit.conftest import Once
from wmtp.audit import pretend
from wmtp.audit.cases import (
    HEADS,
    PRECISIONS,
    TRUNKS,
    WEIGHTINGS,
    Case,
    build_weighting,
    matrix,
    settings_of,
    small_cases,
)
from wmtp.audit.rules import (
    RULES,
    Rule,
    adamw_is_fused,
    attention_matrices_never_exist,
    little_waiting_between_micro_batches,
    logits_never_exist,
    masters_are_float32,
    no_waiting_in_a_micro_batch,
    rotations_are_built_once,
    shapes_repeat,
    tensors_are_small,
)
from wmtp.audit.run import run_audit
from wmtp.weighting import ALGORITHMS

WAITS = """
import torch
from wmtp.weighting import Weighting

class Waits(Weighting):
    scope = "known"

    def weights(self, signals):
        weights_BSH = signals.valid_BSH.float()
        if weights_BSH.sum().item() > 0:
            weights_BSH = weights_BSH.double()
        factor = torch.ones(1, 1, device=weights_BSH.device).to(weights_BSH.dtype).expand(3, 3)
        return weights_BSH @ factor
"""

skipped = pretend.why_not()
needs_simulation = pytest.mark.skipif(skipped is not None, reason=str(skipped))


@pytest.fixture(scope="module")
def result(once: Once, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All small cases, and one whose weighting does what it must not, in one process."""

    def audit() -> dict[str, Any]:
        path = tmp_path_factory.mktemp("user") / "waits.py"
        path.write_text(WAITS)
        audited = run_audit([*small_cases(), spoiled_case(path)])
        return audited.as_dict() | {"last line": audited.lines()[-1]}

    found: dict[str, Any] = once("audit", audit)
    return found


def spoiled_case(path: Path) -> Case:
    model = {"vocab_size": 64, "hidden_size": 32, "num_layers": 1, "num_heads": 2}
    settings = settings_of(
        {**model, "heads": {"horizon": 3}},
        {"algorithm": str(path)},
        "fp32",
        data={"max_length": 16, "batch_size": 1},
        train={},
    )
    return Case("spoiled", settings)


@needs_simulation
@pytest.mark.parametrize(
    ("requirement", "rules"),
    [
        ("1 kernels, dtypes, sizes", RULES[:5]),
        ("1 one set of shapes", (shapes_repeat,)),
        ("2 no large tensor", (tensors_are_small, logits_never_exist)),
        ("3 no waiting", (no_waiting_in_a_micro_batch, little_waiting_between_micro_batches)),
        ("4 no attention matrices", (attention_matrices_never_exist,)),
        ("5 fused, float32", (adamw_is_fused, masters_are_float32, rotations_are_built_once)),
    ],
)
def test_requirement(result: dict[str, Any], requirement: str, rules: tuple[Rule, ...]) -> None:
    names = {rule.__name__.replace("_", " ") for rule in rules}
    assert names <= set(result["rules"])
    found = [f for case in result["cases"][:-1] for f in case["findings"] if f["rule"] in names]
    assert found == []


@needs_simulation
def test_requirement_1_every_weighting_trains_three_steps(result: dict[str, Any]) -> None:
    for case in result["cases"][:-1]:
        assert case["failed"] is None
        assert case["findings"] == []
        assert case["without_kernel"] == []
        assert case["calls"] > 500


@needs_simulation
def test_what_a_users_weighting_does_wrong_is_found_where_it_is(result: dict[str, Any]) -> None:
    found = {f["rule"] for f in result["cases"][-1]["findings"] if "waits.py" in f["where"]}
    assert found >= {
        "every dtype exists",
        "no waiting in a micro batch",
        "factors are not expanded",
    }
    assert result["ok"] is False


@needs_simulation
def test_peaks_are_predicted_and_parts_add_up(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        assert case["peak_bytes"] == sum(case["peak_by_part"].values()) > 0


@needs_simulation
def test_the_table_ends_with_what_is_missing(result: dict[str, Any]) -> None:
    assert "9 cases, 1 failed" in result["last line"]
    assert "missing: 0" in result["last line"]


def test_the_small_cases_have_everything_and_the_matrix_every_combination() -> None:
    small = [case.name for case in small_cases()]
    for words in (WEIGHTINGS, TRUNKS, HEADS, PRECISIONS, ["checkpointed"]):
        for word in words:
            assert any(word in name for name in small), word
    names = [case.name for case in matrix()]
    assert len(set(names)) == len(names)
    assert len(names) >= len(WEIGHTINGS) * len(TRUNKS) * len(PRECISIONS) * 2


def test_every_shipped_algorithm_is_audited() -> None:
    assert {build_weighting(keys).algorithm for keys in WEIGHTINGS.values()} == set(ALGORITHMS)


def test_a_machine_that_cannot_simulate_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretend, "TESTED", ("1.0",))
    result = run_audit(small_cases())
    assert not result.ok
    assert "torch is" in result.lines()[0]


def test_a_machine_without_a_compiler_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    pretend._compiler.cache_clear()
    assert "install g++" in str(pretend.why_not())
    pretend._compiler.cache_clear()
