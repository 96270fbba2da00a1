"""Each check of a run passes for a good one, and fails for one in which its fault is planted."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.model.toys import toy_model
from wmtp.checkpoints.checkpoint import newest_good
from wmtp.doctor.finding import attempt
from wmtp.doctor.first_step import (
    FirstStep,
    gradients_are_there,
    heads_are_there,
    loss_is_computed,
)
from wmtp.doctor.training import (
    Trained,
    checkpoint_comes_back,
    digest,
    loss_falls,
    parameters_moved,
    tracking_is_written,
    training_findings,
)
from wmtp.model.heads import HeadsShape
from wmtp.model.multi_token import build_model
from wmtp.runtime.run_folder import RunFolder
from wmtp.trial import TINY, Trial, trial_settings


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Trained:
    """The same run in a folder that may be spoilt."""
    root = Path(shutil.copytree(trained.folder.root, tmp_path / trained.folder.name))
    shutil.copy(trained.folder.root.parent / "mlflow.db", tmp_path)
    return replace(trained, folder=RunFolder(root))


def test_a_good_run_passes_every_check(trained: Trained) -> None:
    for check in (loss_falls, parameters_moved, checkpoint_comes_back, tracking_is_written):
        assert check(trained).outcome == "passed", check(trained)
    assert tracking_is_written(trained).found == "10 of 10 steps in MLflow's store"


@pytest.mark.parametrize("trial", ["rho1 weighted", "rho1 token_skip", "critic"])
def test_the_other_algorithms_pass(trained: Trained, small_world: Path, trial: Trial) -> None:
    reference = trained.folder.final if trial.startswith("rho1") else None
    settings = trial_settings(small_world, trial, backend="cpu", reference=reference)
    found = list(training_findings(settings, small_world))
    untracked = found.pop()
    assert {finding.outcome for finding in found} == {"passed"}, found
    assert len(found) == 7
    assert (untracked.name, untracked.outcome) == ("tracking written", "not checked")


def test_a_model_that_cannot_be_opened_fails_and_nothing_after_it_passes(small_world: Path) -> None:
    settings = trial_settings(small_world, "rho1 weighted", reference=small_world / "nowhere")
    found = list(training_findings(settings, small_world))
    assert [finding.outcome for finding in found] == ["failed", "not checked"]
    assert "nowhere" in found[0].found


def test_a_learning_rate_of_nothing_is_seen(small_world: Path, tmp_path: Path) -> None:
    settings = trial_settings(small_world, backend="cpu", steps=2)
    optim = settings.recipe.optim.model_copy(update={"lr": 1e-30, "weight_decay": 0.0})
    recipe = settings.recipe.model_copy(update={"optim": optim})
    idle = settings.model_copy(update={"recipe": recipe})
    outcomes = {finding.name: finding for finding in training_findings(idle, tmp_path)}
    assert outcomes["loss falls"].outcome == "failed"
    assert outcomes["gradients applied"].outcome == "failed"
    assert "did not move" in outcomes["gradients applied"].found
    assert outcomes["checkpoint"].outcome == "passed"


def test_a_loss_that_does_not_fall_is_seen(trained: Trained) -> None:
    assert loss_falls(replace(trained, last_loss=trained.first_loss)).outcome == "failed"
    assert loss_falls(replace(trained, last_loss=float("nan"))).outcome == "failed"


def test_a_frozen_tensor_that_moves_is_seen(trained: Trained) -> None:
    one = min(trained.trained)
    found = parameters_moved(replace(trained, trained=trained.trained - {one}))
    assert (found.outcome, one in found.found) == ("failed", True)


def test_a_model_that_comes_back_changed_is_seen(copied: Trained) -> None:
    name = min(copied.after)
    other = copied.after | {name: digest(torch.zeros(3))}
    found = checkpoint_comes_back(replace(copied, after=other))
    assert (found.outcome, name in found.found) == ("failed", True)


def test_a_damaged_checkpoint_is_seen(copied: Trained) -> None:
    checkpoint, _ = newest_good(copied.folder.checkpoints)
    state = next((checkpoint / "training_state").glob("*.safetensors"))
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    assert attempt("checkpoint", lambda: checkpoint_comes_back(copied)).outcome == "failed"


def test_a_store_that_lacks_a_step_is_seen(copied: Trained) -> None:
    with copied.folder.metrics_file.open("a") as file:
        file.write('{"step": 11, "loss": 1.5, "tokens_per_second": 1.0}\n')
    found = tracking_is_written(copied)
    assert (found.outcome, found.found) == ("failed", "10 of 11 steps in MLflow's store")


def test_gradients_that_are_absent_or_no_numbers_are_seen() -> None:
    fine = {"a": torch.ones(2)}
    assert gradients_are_there(FirstStep(1.0, fine, [])).outcome == "passed"
    for first in (
        FirstStep(1.0, fine, ["b"]),
        FirstStep(1.0, fine | {"b": torch.tensor([torch.nan])}, []),
        FirstStep(1.0, {"a": torch.zeros(2)}, []),
    ):
        assert gradients_are_there(first).outcome == "failed"


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.0])
def test_a_loss_that_is_none_is_seen(loss: float) -> None:
    assert loss_is_computed(FirstStep(loss, {}, [])).outcome == "failed"
    assert loss_is_computed(FirstStep(2.0, {}, [])).outcome == "passed"


def test_missing_heads_are_seen() -> None:
    model = toy_model(4)
    assert heads_are_there(model, 4).outcome == "passed"
    assert heads_are_there(model, 5).outcome == "failed"
    alone = build_model(model.trunk_shape, HeadsShape(1), seed=0)
    assert heads_are_there(alone, 4).outcome == "failed"
    assert heads_are_there(alone, 1).outcome == "passed"


def test_digests_tell_the_last_bit_apart() -> None:
    one = torch.tensor([1.0, 2.0])
    assert digest(one) == digest(one.clone())
    assert digest(one) != digest(torch.nextafter(one, torch.tensor(9.0)))
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))


def test_the_small_model_has_four_heads() -> None:
    assert TINY.horizon == 4
