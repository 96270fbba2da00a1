"""The benchmarks run, at toy sizes; their times are not looked at."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.loss.test_work_and_memory import WaitDetector
from wmtp.runtime.device import available_kinds, choose_device

from .conftest import World

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # torch's compiler imports a part of torch that torch calls old
    quiet = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
    command = [
        *(sys.executable, "-W", "error", "-W", quiet), str(BENCHMARKS / script), *arguments
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True)


def test_gpu_benchmark_goes_through_all_its_code_without_a_gpu(tmp_path: Path) -> None:
    done = run("gpu.py", "--smoke", "--markdown", str(tmp_path / "report.md"))
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report.md").read_text()
    assert report == done.stdout
    # 6 schedules, shared or not, fp32 and bf16, taught by the trunk or not
    assert report.count("| holds |") == 48 + 2  # and decoding with and without drafts
    assert "FAILS" not in report
    assert report.count("| toy |") == 4 + 4


@pytest.mark.skipif("cuda" in available_kinds(), reason="it would run for minutes")
def test_gpu_benchmark_says_in_one_line_that_there_is_no_gpu() -> None:
    done = run("gpu.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "This machine has no NVIDIA GPU that torch can use; try --smoke.\n"


def test_loss_benchmark_compares_all_schemes() -> None:
    done = run("loss.py", "--rows", "64", "--dim", "16", "--vocab", "100", "--rounds", "1",
               "--memory-rows", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| **known** |" in done.stdout


def test_decoding_benchmark_compares_all_ways(world: World) -> None:
    world.recipe["train"] = {"max_steps": 2}
    world.recipe["data"]["train"]["max_length"] = 64
    world.train("run")
    prompts = world.folder / "prompts.jsonl"
    prompts.write_text('{"text": "def add", "test_list": ["assert add(1, 2) == 3"]}\n' * 2)
    done = run("decode.py", "--model", str(world.runs / "run" / "final"), "--prompts", str(prompts),
               "--count", "2", "--new-tokens", "6", "--rounds", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ways = [line for line in done.stdout.splitlines() if "| 2 of 2 |" in line]
    # plain, one or two drafts or as many as pay, plain without packing, transformers twice
    assert len(ways) == 7
    assert "| 2 |" in done.stdout.split("milliseconds a round")[1]


def test_greedy_equality_is_counted_for_every_kind_of_heads() -> None:
    done = run("greedy_equality.py", "--prompts", "5", "--new-tokens", "24", "--steps", "3")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if " | " in line][1:]
    assert [row[2].strip() for row in rows] == ["one by one", "in fours"] * 4
    assert all(int(row[3]) + int(row[4]) == 5 and int(row[5]) == 0 for row in rows)


def test_contexts_of_heads_are_compared() -> None:
    done = run("head_contexts.py", "--steps", "2", "--seeds", "1", "--prompts", "2",
               "--new-tokens", "8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for trained in ("chained", "trunk", "mix"):
        assert f"| {trained} | chained |" in done.stdout
        assert f"| {trained} | trunk |" in done.stdout


def gpu_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["known", "token", "sequence", "token_skip"])
def test_whole_training_step_reads_nothing_back(name: str) -> None:
    """What ``set_sync_debug_mode`` asks on a GPU, as far as a CPU can tell."""
    gpu = gpu_benchmark()
    step = gpu.make_step(choose_device("cpu", "bf16"), gpu.SMOKE.models[0], 4, gpu.WEIGHTINGS[name])
    step()  # the optimizer makes its state
    with WaitDetector():
        step()
