import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wmtp.audit import PARTS, Trace, simulate
from wmtp.audit.apart import Request, read_requests, write_requests
from wmtp.audit.blueprint import build_job
from wmtp.audit.simulate import run_steps
from wmtp.audit.trace import trace_from_dict
from wmtp.audit.watch import Watch
from wmtp.config import ModelPaths, Settings
from wmtp.runtime.device import describe_device
from wmtp.step import learn

from .settings import GPT2, toy_settings


@pytest.fixture(scope="module")
def trace() -> Trace:
    return simulate(toy_settings(), device_type="cpu", steps=2)


def test_nothing_is_allocated_for_a_model_of_hundreds_of_millions() -> None:
    wide = {"vocab_size": 32000, "hidden_size": 4096, "num_layers": 1, "num_heads": 32}
    settings = toy_settings(trunk=wide, max_length=64)
    device = describe_device("cpu", "fp32")
    with FakeTensorMode(), Watch("cpu", learn.__code__) as watch:
        job = build_job(settings, device, 1)
        assert job.model.num_parameters > 800_000_000
        assert watch.live_bytes == 4 * job.model.num_parameters


def test_parts_add_up_to_the_peak(trace: Trace) -> None:
    assert tuple(trace.peak_by_part) == PARTS
    assert sum(trace.peak_by_part.values()) == trace.peak_bytes


def test_weights_gradients_and_optimizer_are_counted_to_the_byte(trace: Trace) -> None:
    numbers = 4 * trace.parameters
    assert trace.peak_by_part["weights"] == numbers
    assert trace.peak_by_part["gradients"] == numbers
    states = trace.peak_by_part["optimizer"] - 2 * numbers
    assert 0 < states < 4 * 100  # a step count for each tensor
    assert trace.peak_by_part["activations"] > 0
    assert trace.peak_by_part["loss"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        toy_settings(checkpointing=True, precision="bf16", pack_sequences=False),
        toy_settings(trunk=GPT2, heads="linear", weighting={"algorithm": "critic-wmtp"}),
    ],
    ids=["llama checkpointed bf16", "gpt2 critic"],
)
def test_simulated_memory_is_that_of_real_steps_to_the_byte(settings: Settings) -> None:
    """Real numbers on real memory, watched in the same way."""
    device = describe_device("cpu", settings.config.devices.mixed_precision)
    device = replace(device, exact_counts=False)  # else shapes depend on numbers

    def watched() -> Watch:
        with Watch("cpu", learn.__code__) as watch:
            job = build_job(settings, device, 2)
            run_steps(job, watch, 2)
        return watch

    real = watched()
    with FakeTensorMode():
        fake = watched()
    assert fake.peak_bytes == real.peak_bytes
    assert fake.peak_by_part() == real.peak_by_part()


def test_memory_that_is_let_go_is_not_counted() -> None:
    """The check that the watch can tell: the same work, holding on to what it made."""
    with Watch("cpu", learn.__code__) as watch:
        for _ in range(5):
            torch.zeros(1000)
    assert (watch.peak_bytes, watch.live_bytes) == (4000, 0)
    with Watch("cpu", learn.__code__) as watch:
        held = [torch.zeros(1000).view(10, 100)[2:] for _ in range(5)]  # a view holds all of it
    assert (watch.peak_bytes, watch.live_bytes) == (20000, 20000)
    del held
    assert watch.live_bytes == 0


def test_checkpointing_lets_go_of_activations(trace: Trace) -> None:
    saving = simulate(toy_settings(checkpointing=True), device_type="cpu", steps=2)
    assert saving.peak_by_part["activations"] < trace.peak_by_part["activations"] / 2


def test_a_reference_that_runs_is_held(trace: Trace) -> None:
    settings = toy_settings(weighting={"algorithm": "rho1-wmtp"})
    running = simulate(settings, device_type="cpu", steps=1, scores_cached=False)
    assert running.peak_by_part["reference"] > 0
    assert trace.peak_by_part["reference"] == 0


def test_a_trace_survives_json(trace: Trace) -> None:
    values: dict[str, Any] = json.loads(json.dumps(trace.as_dict()))
    assert trace_from_dict(values) == trace


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_a_model_directory_the_config_alone_is_read(tmp_path: Path, family: str) -> None:
    sizes = {
        "llama": {
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
        },
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32},
    }[family]  # fmt: skip
    config = {"model_type": family, "vocab_size": 128, "tie_word_embeddings": True, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = toy_settings(trunk=GPT2 if family == "gpt2" else None)
    paths = settings.config.paths.model_copy(update={"models": ModelPaths(base=str(tmp_path))})
    settings = settings.model_copy(
        update={"config": settings.config.model_copy(update={"paths": paths})}
    )
    trace = simulate(settings, device_type="cpu", steps=1)
    # embedding, and for each of the three blocks attention and MLP, and two joining maps
    assert trace.parameters > 128 * 32 + 3 * 8 * 32 * 32
    assert trace.peak_by_part["weights"] >= 4 * trace.parameters


def test_settings_travel_to_another_process_and_back(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from wmtp.weighting import Weighting\n\n\nclass Mine(Weighting):\n    scope = 'known'\n"
        "    strength: float = 1.0\n\n    def weights(self, signals):\n"
        "        return signals.valid_BSH.float() * self.strength\n"
    )
    mine = {"algorithm": str(tmp_path / "mine.py"), "strength": 2.0}
    settings = toy_settings(weighting={"algorithm": "shuffled", "around": mine}, precision="bf16")
    write_requests(tmp_path, [Request(settings, steps=2), Request(toy_settings(), stage1=True)])
    first, second = (read() for read in read_requests(tmp_path))
    assert first.settings.as_dict() == settings.as_dict()
    assert (first.steps, second.steps, second.stage1) == (2, 3, True)
