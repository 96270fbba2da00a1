"""What a training step does, operation by operation, beside one written out by hand."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp.config_check import load_settings
from wmtp.job import Job, assembled
from wmtp.loss import fused_mtp_loss
from wmtp.runtime.device import Device
from wmtp.step import Feed, set_in_motion, take_step

from .conftest import World


class Trace(TorchDispatchMode):
    """Counts every operation, of autograd too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def job_on(world: World, device: Device) -> Iterator[Job]:
    settings = load_settings(*world.write_files())
    with assembled(settings, lambda _: None) as job:
        yield replace(job, device=device, workspace=device.loss_workspace())


def as_on_cuda() -> Device:
    """A device whose every choice is CUDA's, but for the kernel, which needs one."""
    return Device("cpu", "fp32", True, False, False, 4096, 512 * 2**20)


def traced_step(job: Job) -> Counter[str]:
    moving = set_in_motion(job)
    with Feed(job, moving.progress) as feed:
        take_step(job, moving, feed)  # the optimizer makes its state
        with Trace() as trace:
            take_step(job, moving, feed)
    return trace.seen


def written_out(job: Job) -> Counter[str]:
    """Forward, loss and backward of two micro-batches, clipping and the optimizer: no more."""
    model = job.model
    parameters = list(model.parameters())
    groups = [[p for p in parameters if p.dim() == dim] for dim in (1, 2)]
    optimizer = torch.optim.AdamW([{"params": some} for some in groups], lr=1e-3, fused=True)
    with job.training_batches(0) as batches:
        for _ in range(2):  # in the first one the optimizer makes its state
            micro_batches = [next(batches) for _ in range(2)]
            with Trace() as trace:
                if model.unembedding_VD.grad is None:
                    model.unembedding_VD.grad = torch.zeros_like(model.unembedding_VD)
                for batch in micro_batches:
                    hidden = model(batch.tokens_BS, batch.targets_BSH, batch.documents_BS)
                    fused_mtp_loss(
                        hidden, model.unembeddings, batch.targets_BSH, batch.valid_BSH,
                        lambda ce, part: batch.valid_BSH.float(), "known",  # noqa: B023
                        valid_count=100.0,
                        unembedding_gradients=[model.unembedding_VD.grad],
                        workspace=job.workspace,
                        valid_targets=sum(batch.valid_counts_H),
                    ).loss.backward()  # fmt: skip
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
                optimizer.step()
                optimizer.zero_grad()
    return trace.seen


HEAVY = ("mm", "addmm", "bmm", "attention", "softmax", "embedding", "rms_norm", "_fused_adamw_")


def heavy(seen: Counter[str]) -> dict[str, int]:
    """Operations on whole hidden states, logits or parameters."""
    return {name: n for name, n in seen.items() if any(word in name for word in HEAVY)}


def test_a_step_does_what_is_written_out_and_small_sums_beside_it(world: World) -> None:
    with job_on(world, as_on_cuda()) as job:
        whole, bare = traced_step(job), written_out(job)
    assert heavy(whole) == heavy(bare)
    beside = whole - bare
    # sums of the logged row, one set per micro-batch and per step, and the flag of bad steps
    assert sum(beside.values()) <= 110, beside
    waits = [name for name in beside if "item" in name or "_local_scalar" in name]
    assert not waits


@pytest.mark.parametrize("kind", ["mps", "cpu"])
def test_what_other_devices_need_adds_nothing_on_cuda(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step with every method for other devices taken out of its device."""
    with job_on(world, as_on_cuda()) as job:
        known = traced_step(job)

    def never(*_: Any) -> Any:
        raise AssertionError(f"a CUDA step asked for what {kind} needs")

    for name in ("empty_cache", "is_out_of_memory", "synchronize", "reset_peak_memory"):
        monkeypatch.setattr(Device, name, never)
    with job_on(world, as_on_cuda()) as job:
        assert traced_step(job) == known
