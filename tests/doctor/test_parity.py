"""A CPU is compared with itself here; that the comparison can fail is shown."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmtp.doctor.first_step import agreement
from wmtp.doctor.operations import Comparison, relative_difference
from wmtp.doctor.parity import (
    covered,
    first_step_on,
    operations_agree,
    parity_findings,
    step_agrees,
)
from wmtp.doctor.training import quiet_console
from wmtp.job import assembled
from wmtp.runtime.device import available_kinds
from wmtp.state import stored_model
from wmtp.trial import trial_settings, write_data


@pytest.mark.skipif("cuda" in available_kinds() or "mps" in available_kinds(), reason="a device")
def test_without_a_device_parity_is_not_called_passed(small_world: Path) -> None:
    found = {finding.name: finding.outcome for finding in parity_findings(small_world, frozenset())}
    assert found == {"step, cpu bf16": "passed", "device against CPU": "not checked"}


def test_a_step_that_differs_is_seen(small_world: Path) -> None:
    reference = first_step_on(small_world, "cpu", "fp32")
    assert agreement(reference, reference) == (0.0, pytest.approx(1.0, abs=1e-12))
    assert step_agrees(small_world, reference, "cpu", "fp32").outcome == "passed"
    other_loss = replace(reference, loss=reference.loss + 2e-4)
    assert step_agrees(small_world, other_loss, "cpu", "fp32").outcome == "failed"
    name = max(reference.gradients, key=lambda n: float(reference.gradients[n].norm()))
    turned = reference.gradients | {name: -reference.gradients[name]}
    found = step_agrees(small_world, replace(reference, gradients=turned), "cpu", "fp32")
    assert found.outcome == "failed"
    fewer = {key: value for key, value in reference.gradients.items() if key != name}
    assert agreement(reference, replace(reference, gradients=fewer))[1] == -1.0


def test_every_operation_of_real_steps_is_compared(tmp_path: Path) -> None:
    write_data(tmp_path)
    with quiet_console() as console, assembled(trial_settings(tmp_path), console.log) as job:
        stored = stored_model(job.model, job.tokenizer, job.ranks)
        assert stored is not None
        folder = tmp_path / "baseline" / "final"  # the reference of rho1, which may know nothing
        folder.mkdir(parents=True)
        stored.write(folder)
        job.tokenizer.save(folder)
    compared: set[str] = set()
    found = operations_agree(tmp_path, "cpu", "fp32", compared)
    assert found.outcome == "passed", found
    assert {"mm", "_fused_adamw_", "embedding_dense_backward", "native_layer_norm", "gather",
            "linalg_vector_norm", "index_fill_.int_Scalar"} <= compared  # fmt: skip
    assert len(compared) > 100


def test_precision_that_is_not_here_is_not_checked(small_world: Path) -> None:
    assert operations_agree(small_world, "cpu", "fp16", set()).outcome == "not checked"


@pytest.fixture(scope="module")
def drifting() -> object:
    """Operations that give something else when they run again, as a wrong kernel would."""
    library = torch.library.Library("wmtp_doctor_test", "DEF")
    library.define("drift(Tensor x) -> Tensor")
    library.define("drift_(Tensor(a!) x) -> Tensor(a!)")
    calls = [0]

    def drift(x: Tensor) -> Tensor:
        calls[0] += 1
        return x + calls[0]

    def drift_(x: Tensor) -> Tensor:
        calls[0] += 1
        return x.add_(calls[0])

    library.impl("drift", drift, "CPU")
    library.impl("drift_", drift_, "CPU")
    yield torch.ops.wmtp_doctor_test
    library._destroy()


@pytest.mark.parametrize("name", ["drift", "drift_"])
def test_a_wrong_operation_is_seen(drifting: object, name: str) -> None:
    comparison = Comparison(torch.device("cpu"))
    with comparison:
        x = torch.ones(3) * 2
        getattr(drifting, name)(x)
    found = comparison.finding("operations")
    assert (found.outcome, name in found.found) == ("failed", True)


def test_inputs_that_overlap_are_copied_as_they_overlap() -> None:
    comparison = Comparison(torch.device("cpu"))
    with comparison:
        x = torch.arange(6.0).view(2, 3)
        torch.add(x, x, out=x)
        x[0].add_(x[1])
        (x[:1].expand(2, 3) @ x.t()).sum()
    assert comparison.finding("operations").outcome == "passed", comparison.wrong


def test_random_operations_are_named_and_not_compared() -> None:
    comparison = Comparison(torch.device("cpu"))
    with comparison:
        torch.ones(3).bernoulli_(0.5)
    assert comparison.incomparable == {"bernoulli_.float": "random"}


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, float("inf")], [1.0, float("inf")], 0.0),
        ([1.0, float("-inf")], [1.0, float("inf")], float("inf")),
        ([1.0, float("nan")], [1.0, float("nan")], 0.0),
        ([1.0, float("nan")], [1.0, 2.0], float("inf")),
        ([1.0, 2.0], [1.0, float("nan")], float("inf")),
        ([], [], 0.0),
    ],
)
def test_differences(found: list[float], expected: list[float], difference: float) -> None:
    assert relative_difference(torch.tensor(found), torch.tensor(expected)) == difference


def test_whole_numbers_must_be_equal() -> None:
    assert relative_difference(torch.tensor([1]), torch.tensor([1])) == 0.0
    assert relative_difference(torch.tensor([1]), torch.tensor([2])) == float("inf")


def test_what_of_the_audit_was_not_compared_is_named() -> None:
    found = covered(frozenset({"mm", "sort"}), {"mm", "add"}, "mps").found
    assert found == "1 of 2 audited operations were compared; not: sort"
