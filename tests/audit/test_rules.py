"""Every rule can fail: real calls that it forbids, made on a simulated MPS device."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.audit.conftest import Once
from wmtp.audit.reviewed import REVIEWED
from wmtp.audit.rules import RULES, Expected, findings, masters_are_float32
from wmtp.audit.trace import Form, Operation, Trace, trace_from_dict

ROOT = Path(__file__).parents[2]

EXPECTED = Expected(
    largest_bytes=256 * 2**20,
    logits=2 * 512 * 3 * 32000,
    attention=4 * 1024 * 1024,
    fused_adamw=False,
    product_dtype="float32",
    scaled=False,
)

FOUND = {
    "float64": "every dtype exists",
    "no_kernel": "every operation has a kernel",
    "composite_nobody_reviewed": "every operation has a kernel",
    "on_the_cpu": "every operation has a kernel",
    "six_dimensions": "ranks are small",
    "more_than_32_bits": "sizes are legal",
    "large_product": "sizes are legal",
    "expanded_factor": "factors are not expanded",
    "reads_a_number": "no waiting in a micro batch",
    "asks_which": "no waiting in a micro batch",
    "flags_as_indices": "no waiting in a micro batch",
    "copies_back": "no waiting in a micro batch",
    "sends_a_list": "no waiting in a micro batch",
    "four_dimensional_logits": "logits never exist",
    "attention_matrices": "attention matrices never exist",
    "adamw_in_a_loop": "adamw is fused",
    "rotations_again": "rotations are built once",
    "rotations_in_bf16": "rotations are built once",
    "growing": "shapes repeat",
}


def run_bad_steps() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.audit.bad_steps"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def traces(once: Once) -> dict[str, Trace]:
    rows = once("bad_steps", run_bad_steps)
    if "skipped" in rows[0]:
        pytest.skip(rows[0]["skipped"])
    return {row["step"]: trace_from_dict(row["trace"]) for row in rows}


def rules_that_find(trace: Trace, expected: Expected = EXPECTED) -> set[str]:
    return {finding.rule for finding in findings(trace, expected)}


@pytest.mark.parametrize(("step", "rule"), FOUND.items(), ids=FOUND.keys())
def test_negative_control_is_found(traces: dict[str, Trace], step: str, rule: str) -> None:
    expected = replace(EXPECTED, fused_adamw=step == "adamw_in_a_loop")
    assert rule in rules_that_find(traces[step], expected)


def test_a_step_that_is_fine_is_let_through(traces: dict[str, Trace]) -> None:
    assert rules_that_find(traces["fine"], replace(EXPECTED, fused_adamw=True)) == set()
    assert "_fused_adamw_" in traces["fine"].operation_names


def test_the_largest_tensor_is_named(traces: dict[str, Trace]) -> None:
    found = findings(traces["four_dimensional_logits"], EXPECTED)
    large = next(one for one in found if one.rule == "tensors are small")
    assert "[2, 512, 3, 32000]" in large.what
    assert "bad_steps.py" in large.where


def test_attention_matrices_may_be_there_where_rows_are_short(traces: dict[str, Trace]) -> None:
    short = replace(EXPECTED, attention=None)
    assert "attention matrices never exist" not in rules_that_find(
        traces["attention_matrices"], short
    )


def test_every_rule_has_a_negative_control(traces: dict[str, Trace]) -> None:
    by_itself = {"masters are float32", "little waiting between micro batches"}
    seen = set().union(
        *(rules_that_find(t, replace(EXPECTED, fused_adamw=True)) for t in traces.values())
    )
    assert seen | by_itself == {rule.__name__.replace("_", " ") for rule in RULES}


def test_masters_in_16_bits_are_found(traces: dict[str, Trace]) -> None:
    trace = traces["fine"]
    assert list(masters_are_float32(trace, EXPECTED)) == []
    narrow = replace(trace, dtypes_by_part={**trace.dtypes_by_part, "weights": ("bfloat16",)})
    assert [what for what, _ in masters_are_float32(narrow, EXPECTED)] == ["weights are bfloat16"]
    autocast = replace(EXPECTED, product_dtype="bfloat16")
    assert "not bfloat16" in next(masters_are_float32(trace, autocast))[0]


def test_reading_between_micro_batches_is_for_the_loss_scale_alone(
    traces: dict[str, Trace],
) -> None:
    number = Form("float32", (), (), "mps")
    read = Operation("_local_scalar_dense", (number,), (), False, "x.py:1", (1, 2, 3), 3)
    trace = replace(traces["fine"], operations=(read,))
    rule = "little waiting between micro batches"
    assert rule in rules_that_find(trace)
    assert rule not in rules_that_find(trace, replace(EXPECTED, scaled=True))
    often = replace(trace, operations=(replace(read, calls=4),))
    assert rule in rules_that_find(often, replace(EXPECTED, scaled=True))


def test_every_reviewed_operation_says_why() -> None:
    assert all(len(reason.split()) >= 3 for reason in REVIEWED.values())
