"""``wmtp doctor`` as it is typed; its real run at the small size is done once."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from wmtp import cli
from wmtp.cli import app
from wmtp.cli.machine import doctor_request
from wmtp.doctor.doctor import own_training
from wmtp.doctor.machine import machine_findings, products_are_right
from wmtp.doctor.memory import memory_is_enough
from wmtp.memory_plan import predict
from wmtp.runtime.device import MemoryLimit, available_kinds
from wmtp.trial import trial_settings


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_requirement_10_a_sound_machine_passes_within_a_minute(tmp_path: Path) -> None:
    """One test for all that the real run shows, because it takes seconds."""
    file = tmp_path / "doctor.json"
    started = time.process_time()
    result = run("--tiny", "--json", file)
    seconds = time.process_time() - started  # of the processor: others may use the machine as well
    written = json.loads(file.read_text())
    assert result.exit_code == 0, result.output
    found = {one["name"]: one for one in written["findings"]}
    for name in ("device found", "chip", "system", "memory", "numbers, cpu fp32", "model loaded",
                 "heads there", "loss computed", "gradients computed", "loss falls",
                 "gradients applied", "checkpoint", "tracking written", "step, cpu bf16",
                 "leaked semaphores"):  # fmt: skip
        assert found[name]["outcome"] == "passed", name
        assert f"passed       {name}" in result.output
    assert found["heads there"]["found"].startswith("4 of kind sequential")
    assert found["tracking written"]["found"] == "10 of 10 steps in MLflow's store"
    # what cannot be asked here is no pass
    if available_kinds() == ("cpu",):
        for name in ("watermarks", "device against CPU", "fallback warnings"):
            assert found[name]["outcome"] == "not checked"
    counted = sum(one["outcome"] == "not checked" for one in found.values())
    assert f"0 failed, {counted} not checked here" in result.output
    assert seconds < 60


def test_a_machine_that_computes_wrong_numbers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products_are_right("cpu", "fp32").outcome == "passed"
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: right(a, b) + (a.dtype == torch.float32) * 0.1
    )
    assert products_are_right("cpu", "fp32").outcome == "failed"


@pytest.mark.skipif("cuda" in available_kinds(), reason="it is there")
def test_a_device_that_is_not_there_fails() -> None:
    found = {finding.name: finding for finding in machine_findings("cuda")}
    assert found["device found"].outcome == "failed"
    assert "this machine has only" in found["device found"].found


@pytest.fixture
def files(small_world: Path, tmp_path: Path) -> dict[str, Path]:
    """A user's config and recipe; runs go to a folder that is not there yet."""
    trial_settings(small_world, backend="cpu")
    config = yaml.safe_load((small_world / "config.yaml").read_text())
    config["paths"]["checkpoints"]["base_path"] = str(tmp_path / "runs")
    paths = {"--config": tmp_path / "config.yaml", "--recipe": tmp_path / "recipe.yaml"}
    paths["--config"].write_text(yaml.safe_dump(config))
    paths["--recipe"].write_text((small_world / "recipe.yaml").read_text())
    return paths


def typed(files: dict[str, Path]) -> list[object]:
    return [part for pair in files.items() for part in pair]


def test_a_dry_run_checks_files_and_trains_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    result = run(*typed(files), "--dry-run")
    assert result.exit_code == 0, result.output
    for name in (
        "keys and values",
        "models named",
        "tokenizer",
        "data and model",
        "memory of a run",
    ):
        assert f"passed       {name}" in result.output
    assert "loss" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "recipe.yaml"]


@pytest.mark.parametrize(
    ("change", "name", "word"),
    [
        ("data.tokenizer=nowhere", "tokenizer", "nowhere"),
        ("paths.models.base=nowhere", "models named", "nowhere"),
        ("data.train.sources=[nowhere.txt]", "data and model", "nowhere.txt"),
    ],
)
def test_faults_of_files_are_told_in_the_table_and_end_with_2(
    files: dict[str, Path], change: str, name: str, word: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["wmtp", "doctor", *map(str, typed(files)), "--dry-run", "--set", change]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert any(line.startswith("failed") and name in line for line in told.out.splitlines())
    assert told.err.startswith("error: ")
    assert word in told.err


def test_a_recipe_that_does_not_fit_fails(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = doctor_request(str(files["--config"]), str(files["--recipe"]), None, None).settings
    assert settings is not None
    peak = predict(settings, "cpu").peak_bytes
    assert memory_is_enough(settings).outcome == "passed"
    small = MemoryLimit(peak - 1, "a test")
    monkeypatch.setattr("wmtp.doctor.memory.memory_limit", lambda kind: small)
    found = memory_is_enough(settings)
    assert (found.outcome, "lower data.train.batch_size" in found.found) == ("failed", True)


def test_ten_steps_of_the_users_recipe_leave_nothing(files: dict[str, Path]) -> None:
    """The part of ``wmtp doctor --recipe`` that trains, without what is tested above."""
    request = doctor_request(
        str(files["--config"]), str(files["--recipe"]), None, ["train.max_steps=500"]
    )
    assert request.ten_steps is not None
    with ExitStack() as opened:
        found = {one.name: one.outcome for one in own_training(request.ten_steps, opened)}
    assert found.pop("tracking written") == "not checked"  # the config has switched it off
    assert set(found.values()) == {"passed"}
    runs = Path(request.ten_steps.config.paths.checkpoints.base_path)
    assert list(runs.iterdir()) == []


def test_options_that_need_a_recipe_say_so() -> None:
    result = run("--config", "configs/local.yaml")
    assert "give --recipe too" in str(result.exception)


def test_a_report_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    result = run("--dry-run", "--json", tmp_path / "no" / "x.json")
    assert "no file can be made there" in str(result.exception)
    assert result.output == ""
