"""Training steps of our own code on tensors without numbers: nothing is allocated or computed.

The model, the loss, the weighting, autograd, autocast, the loss scale of fp16, gradient
checkpointing, clipping and the optimizer are those of a real run. What a step would ask of a
device, and how much memory it would hold, comes out exactly; how long it takes does not.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from wmtp.audit.blueprint import build_job
from wmtp.audit.trace import Trace
from wmtp.audit.watch import Watch
from wmtp.config import Settings
from wmtp.job import Job
from wmtp.runtime.device import Kind, describe_device
from wmtp.state import Moving
from wmtp.step import Feed, learn, set_in_motion, take_step

STEPS = 3
"""The second has the optimizer's state, the third shows whether shapes repeat."""


def simulate(
    settings: Settings,
    *,
    device_type: Kind,
    steps: int = STEPS,
    scores_cached: bool = True,
    vocab_size: int | None = None,
) -> Trace:
    """Take the first training steps of a run without its numbers.

    Args:
        settings: config and recipe; data and weights that they name need not be there.
        device_type: where the tensors pretend to be. For ``mps`` away from a Mac the process must
            pretend to have one, see ``pretend.py``.
        steps: how many; at least 2 to see the optimizer's state at the peak.
        scores_cached: rho1's reference scores come with the data; False runs the reference.
        vocab_size: of the tokenizer, where it is known; else found as a run would find it.

    Raises:
        WmtpError: a config or tokenizer that the sizes depend on cannot be read.
    """
    device = describe_device(device_type, settings.config.devices.mixed_precision)
    with FakeTensorMode(), Watch(device_type, learn.__code__) as watch:
        job = build_job(settings, device, steps, scores_cached=scores_cached, vocab_size=vocab_size)
        run_steps(job, watch, steps)
    modules = [job.model, *([] if job.value_head is None else [job.value_head])]
    return Trace(
        device_type=device_type,
        steps=steps,
        peak_bytes=watch.peak_bytes,
        peak_by_part=watch.peak_by_part(),
        peak_of_steps=watch.peak_of_steps(),
        operations=watch.operations(),
        largest_tensors=watch.largest(),
        parameters=sum(p.numel() for module in modules for p in module.parameters()),
    )


def run_steps(job: Job, watch: Watch, steps: int) -> None:
    """Take steps while the watch looks on, and tell it whose memory is whose."""
    for module in (job.model, job.value_head):
        if module is not None:
            watch.tag((*module.parameters(), *module.buffers()), "weights")
    if job.reference is not None:
        held = job.reference.model
        watch.tag((*held.parameters(), *held.buffers()), "reference")
    moving = set_in_motion(job)
    follow_optimizers(moving, watch)
    job.model.train()
    with Feed(job, moving.progress) as feed:
        for step in range(1, steps + 1):
            watch.begin_step(step)
            take_step(job, moving, feed)


def follow_optimizers(moving: Moving, watch: Watch) -> None:
    """Tag gradients, which keep their memory from the first micro-batch on, and states."""

    def before(optimizer: Optimizer, *_: object) -> None:
        groups = optimizer.param_groups
        watch.tag((p.grad for group in groups for p in group["params"]), "gradients")

    def after(optimizer: Optimizer, *_: object) -> None:
        states = (value for state in optimizer.state.values() for value in state.values())
        watch.tag((value for value in states if isinstance(value, torch.Tensor)), "optimizer")

    for optimizer in moving.optimizers:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
