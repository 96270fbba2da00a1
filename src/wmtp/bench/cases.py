"""What is measured in a process of its own: training, memory, the loss, decoding.

Each function runs in a new process: its memory is nobody else's, and a driver that aborts ends
one case and not the report.
"""

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from wmtp.bench.figures import Figure, Mode, Subject, Unit
from wmtp.bench.loss_problem import (
    SKIPPED,
    Problem,
    bare_products,
    forget_gradients,
    learn,
    learn_weighted,
    make_problem,
)
from wmtp.data.tokenizer import TextTokenizer
from wmtp.job import Job, assembled
from wmtp.memory_plan import predict
from wmtp.model.decoding.draft_length import Speculative
from wmtp.model.generate import generate
from wmtp.model.packing import pack_for_decoding
from wmtp.runtime.device import Device, Kind, Precision, choose_device
from wmtp.step import Feed, set_in_motion, take_step
from wmtp.trial import TINY, Size, trial_settings, write_data
from wmtp.weighting import Rho1

WARM_STEPS = 2
WINDOWS = 3
TRAINING = Size(384, 6, 6, 3, vocab_size=16000, length=256, rows=4)
DECODING = Size(256, 4, 4, 2, length=128, rows=4)
TOKEN_SKIP = Rho1(mode="token_skip", skip_fraction=SKIPPED)


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        training: model and micro-batch whose speed and memory are measured.
        seconds: of training that each case measures, after warming up.
        leaking: model of the leak check.
        leak_steps: steps over which nothing may grow.
        loss_rows: targets of the loss's problem; ``loss_width`` and ``loss_vocabulary`` likewise.
        loss_rounds: of which the least time counts.
        decoding: model that is trained for a while and then writes.
        decoding_steps: how long it is trained, so that its drafts are sometimes right.
        new_tokens: that it writes.
    """

    training: Size = TRAINING
    seconds: float = 4.0
    leaking: Size = TINY
    leak_steps: int = 50
    loss_rows: int = 2048
    loss_width: int = 512
    loss_vocabulary: int = 16000
    loss_rounds: int = 3
    decoding: Size = DECODING
    decoding_steps: int = 40
    new_tokens: int = 64


TOY = Effort(
    training=TINY,
    seconds=0.0,
    leak_steps=5,
    loss_rows=64,
    loss_width=16,
    loss_vocabulary=100,
    loss_rounds=1,
    decoding=TINY,
    decoding_steps=2,
    new_tokens=4,
)
"""All the code and no figure that means anything."""


@dataclass(frozen=True)
class Place:
    """Where a case is measured."""

    kind: Kind
    precision: Precision = "fp32"
    mode: Mode = "eager"

    def device(self) -> Device:
        """The device in that precision."""
        return choose_device(self.kind, self.precision)


def measure_training(place: Place, effort: Effort) -> list[Figure]:
    """Tokens a second of real steps, and their peak memory beside the simulated one."""
    device = place.device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        warm_up(folder, place)
        settings = trial_settings(
            folder,
            size=effort.training,
            backend=place.kind,
            precision=place.precision,
            compiled=place.mode == "compiled",
        )
        before = device.held_memory_bytes()
        device.reset_peak_memory()
        with assembled(settings, ignore) as job:
            speed = training_speed(job, effort.seconds)
        peak = device.peak_memory_bytes() - before
        if place.mode == "compiled":
            return [figure("training", place, speed, "tokens/s")]
        predicted = predict(settings, device.kind).peak_bytes
    return [
        figure("training", place, speed, "tokens/s"),
        figure("peak memory", place, peak, "bytes"),
        figure("predicted peak memory", place, predicted, "bytes"),
    ]


def warm_up(folder: Path, place: Place) -> None:
    """Two small steps: what libraries load and keep at their first use is no run's memory."""
    settings = trial_settings(folder, backend=place.kind, precision=place.precision)
    with assembled(settings, ignore) as job:
        training_speed(job, 0.0)


def ignore(_: str) -> None:
    """What is being opened is no news here."""


def figure(subject: Subject, place: Place, value: float, unit: Unit) -> Figure:
    """A value where it was measured."""
    return Figure(
        subject=subject,
        device=place.kind,
        precision=place.precision,
        mode=place.mode,
        value=float(value),
        unit=unit,
    )


def training_speed(job: Job, seconds: float) -> float:
    """Tokens a second in the best of a few windows, after the steps that compile and warm up."""
    moving = set_in_motion(job)
    job.model.train()
    tokens = job.rows_per_step * job.settings.recipe.data.train.max_length
    with Feed(job, moving.progress) as feed:

        def take(steps: int) -> float:
            started = time.perf_counter()
            for _ in range(steps):
                take_step(job, moving, feed)
            job.device.synchronize()
            return time.perf_counter() - started

        take(WARM_STEPS)
        steps = max(1, round(seconds / WINDOWS / max(take(1), 1e-6)))
        return steps * tokens / min(take(steps) for _ in range(WINDOWS))


def measure_leak(place: Place, effort: Effort) -> list[Figure]:
    """Growth of what is held from the end of the tenth step to that of the sixtieth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        settings = trial_settings(
            folder, size=effort.leaking, backend=place.kind, precision=place.precision
        )
        with assembled(settings, ignore) as job:
            growth = growth_of(job, effort.leak_steps)
    return [figure("growth over 50 steps", place, growth, "bytes")]


def growth_of(job: Job, steps: int) -> int:
    """Bytes that are held after so many steps and were not after the first ten."""
    moving = set_in_motion(job)
    job.model.train()
    with Feed(job, moving.progress) as feed:

        def held_after(count: int) -> int:
            for _ in range(count):
                take_step(job, moving, feed)
            moving.window.close()
            job.device.synchronize()
            gc.collect()
            return job.device.held_memory_bytes()

        before = held_after(10)
        return held_after(steps) - before


def measure_loss(place: Place, effort: Effort) -> list[Figure]:
    """The loss's time over that of the bare products, for weights of three kinds."""
    device = place.device()
    sizes = effort.loss_rows, effort.loss_width, effort.loss_vocabulary
    problem = make_problem(*sizes, 4, torch.float32, device=device.torch_device)
    workspace = device.loss_workspace()
    schemes: dict[Subject, Callable[[], None]] = {
        "loss, known weights": lambda: learn(
            problem, lambda ce, part: problem.weights_BSH, "known", workspace
        ),
        "loss, rho1 weighted": lambda: learn_weighted(problem, Rho1(), workspace),
        "loss, rho1 token_skip": lambda: learn_weighted(problem, TOKEN_SKIP, workspace),
    }
    bare, least = float("inf"), dict.fromkeys(schemes, float("inf"))
    for _ in range(effort.loss_rounds):
        bare = min(bare, seconds_of(lambda: bare_products(problem), problem, device))
        for name, run in schemes.items():
            least[name] = min(least[name], seconds_of(run, problem, device))
    return [figure(name, place, seconds / bare, "ratio") for name, seconds in least.items()]


def seconds_of(run: Callable[[], None], problem: Problem, device: Device) -> float:
    """Until the device has done it."""
    forget_gradients(problem)
    device.synchronize()
    started = time.perf_counter()
    run()
    device.synchronize()
    return time.perf_counter() - started


def measure_decoding(place: Place, effort: Effort) -> list[Figure]:
    """Tokens a second of a small model that was trained for a while, without and with drafts."""
    device = place.device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        settings = trial_settings(
            folder, size=effort.decoding, backend=place.kind, steps=effort.decoding_steps
        )
        with assembled(settings, ignore) as job:
            moving = set_in_motion(job)
            job.model.train()
            with Feed(job, moving.progress) as feed:
                for _ in range(effort.decoding_steps):
                    take_step(job, moving, feed)
            model = pack_for_decoding(job.model.eval())
            prompt = prompt_of(job.tokenizer)
    new_tokens = min(effort.new_tokens, effort.decoding.length - len(prompt))
    ways: dict[Subject, Speculative] = {"decoding, plain": 0, "decoding, drafts": "auto"}
    least = dict.fromkeys(ways, float("inf"))
    for way in [*ways, *ways, *ways]:  # the first of three rounds warms up
        started = time.perf_counter()
        found = list(generate(model, prompt, max_new_tokens=new_tokens, speculative=ways[way]))
        device.synchronize()
        least[way] = min(least[way], (time.perf_counter() - started) / len(found))
    return [figure(way, place, 1 / least[way], "tokens/s") for way in ways]


def prompt_of(tokenizer: TextTokenizer) -> list[int]:
    """The beginning of one of the programs that the model has learned."""
    return [*tokenizer.bos_ids, *tokenizer.encode("def add_3(a, b):\n")]
