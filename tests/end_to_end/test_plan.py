"""``wmtp plan`` and ``wmtp train --dry-run`` foresee the same."""

import json
import os
import re
import subprocess
import sys

import pytest

from wmtp.errors import ConfigError, DeviceError

from .conftest import World


def plan(world: World, *more: str) -> int:
    config, recipe = world.write_files()
    return world.run("plan", "--config", config, "--recipe", recipe, *more)


def predicted(said: str) -> str:
    found = re.search(r"([\d,]+) MiB predicted", said)
    assert found is not None
    return found[1]


def test_a_plan_tells_memory_by_part_and_time_and_leaves_no_file(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(world.folder.rglob("*"))
    assert plan(world, "--hours", "1") == 0
    said = capsys.readouterr().out
    for word in ("weights", "gradients", "optimizer", "activations", "loss workspace", "limit",
                 "largest fitting  4 rows", "step time", "time to finish"):  # fmt: skip
        assert word in said, word
    assert {p.name for p in world.folder.rglob("*")} - {p.name for p in before} == {
        "config.yaml", "recipe.yaml",
    }  # fmt: skip
    world.train("dry", "--dry-run")
    dry = capsys.readouterr().out
    assert "MiB measured" in dry
    assert predicted(dry) == predicted(said)


def test_time_that_is_too_short_is_refused_with_the_steps_that_fit(world: World) -> None:
    world.recipe["train"]["max_steps"] = 10**6
    with pytest.raises(DeviceError, match=r"Set train\.max_steps: \d+, or train a smaller model"):
        plan(world, "--hours", "0.01")


def test_another_machine_is_planned_for_without_its_data(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.folder / "text.txt").unlink()
    assert plan(world, "--device", "mps", "--memory", "16") == 0
    said = capsys.readouterr().out
    assert "75% of the 10.7 GiB that Metal recommends" in said
    assert "not measured: this machine has no mps" in said
    with pytest.raises(DeviceError, match="on the machine that is to train"):
        plan(world, "--device", "mps", "--memory", "16", "--hours", "1")


def test_memory_that_is_too_small_is_refused_before_anything_is_read(world: World) -> None:
    (world.folder / "text.txt").unlink()
    with pytest.raises(DeviceError, match="the run would hold"):
        plan(world, "--memory", "0.001")


def test_a_device_that_does_not_exist_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="--device is 'tpu'"):
        plan(world, "--device", "tpu")


MEASURE = """
import json, sys
sys.path.insert(0, "benchmarks")
import memory
from pathlib import Path
folder, found = Path(sys.argv[1]), []
for kind, checkpointing in (("sequential", True), ("linear", False)):
    model = memory.SMALL | {"hidden_size": 192, "num_layers": 3, "vocab_size": 2048}
    again = {"train": {"gradient_checkpointing": checkpointing}}
    model = memory.heads(model, kind=kind)
    memory.CONFIGURATIONS["here"] = (memory.recipe(model, 4, 256, **again), "fp32")
    foreseen = sum(memory.predict(folder, "here").values())
    found.append([foreseen, memory.measure(folder, "here", give_back=False)[0]])
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is Linux's")
def test_req9_predictions_are_within_ten_percent_of_what_a_process_holds(world: World) -> None:
    """As ``benchmarks/memory.py``, which has larger ones; small pieces are given back here too."""
    command = [sys.executable, "-c", MEASURE, str(world.folder)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for foreseen, measured in json.loads(done.stdout.splitlines()[-1]):
        assert foreseen == pytest.approx(measured, rel=0.1)
