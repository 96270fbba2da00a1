"""Training steps of our own code on tensors without numbers: nothing is allocated or computed.

The model, the loss, the weighting, autograd, autocast, the loss scale of fp16, gradient
checkpointing, clipping and the optimizer are those of a real run. What a step would ask of a
device, and how much memory it would hold, comes out exactly; how long it takes does not.
"""

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from wmtp.audit.blueprint import build_job, build_value_data
from wmtp.audit.trace import Trace
from wmtp.audit.watch import Watch
from wmtp.config import Settings
from wmtp.job import Job
from wmtp.optim import Optimizers
from wmtp.runtime.device import Kind, describe_device
from wmtp.stage1.frozen_states import FrozenStates
from wmtp.stage1.loop import WHOLE_DOCUMENTS_BYTES, learn_values, value_optimizers
from wmtp.stage1.measure import batch_loss
from wmtp.stage1.progress import Learning, ValueProgress
from wmtp.step import Feed, learn, set_in_motion, take_step
from wmtp.weighting import find_critic

STEPS = 3
"""The second has the optimizer's state, the third shows whether shapes repeat."""


def simulate_here(
    settings: Settings,
    *,
    device_type: Kind,
    steps: int = STEPS,
    scores_cached: bool = True,
    vocab_size: int | None = None,
    tiled_attention: bool | None = None,
    stage1: bool = False,
) -> Trace:
    """Take the first training steps of a run without its numbers, in this process.

    Args:
        settings: config and recipe; data and weights that they name need not be there.
        device_type: where the tensors pretend to be. Of a device that this process does not have
            it must take itself to have one, see ``pretend.py``.
        steps: how many; at least 2 to see the optimizer's state at the peak.
        scores_cached: rho1's reference scores come with the data; False runs the reference.
        vocab_size: of the tokenizer, where it is known; else found as a run would find it.
        tiled_attention: attention is made in tiles; None as the device likes it.
        stage1: take steps of the critic's stage 1, in which the value head learns.

    Raises:
        WmtpError: a config or tokenizer that the sizes depend on cannot be read.
    """
    device = describe_device(device_type, settings.config.devices.mixed_precision)
    run, inner = (run_stage1, learn_values) if stage1 else (run_steps, learn)
    watch = Watch(device_type, inner.__code__)
    with FakeTensorMode(), watch:
        job = build_job(
            settings,
            device,
            steps,
            scores_cached=scores_cached,
            vocab_size=vocab_size,
            tiled_attention=tiled_attention,
        )
        run(job, watch, steps)
    modules = [job.model, *([] if job.value_head is None else [job.value_head])]
    return watch.trace(sum(p.numel() for module in modules for p in module.parameters()))


def observe(step: Callable[[], object], *, device_type: Kind, steps: int = STEPS) -> Trace:
    """What calls of any function do, on tensors without numbers; each counts as a micro-batch.

    Args:
        step: a plain function; what it makes on the device is all that is seen.
        device_type: which tensors count.
        steps: how often it is called.
    """
    watch = Watch(device_type, called.__code__)
    with FakeTensorMode(), watch:
        for number in range(1, steps + 1):
            watch.begin_step(number)
            called(step)
    return watch.trace(parameters=0)


def called(step: Callable[[], object]) -> None:
    """Call it: what this frame is above of counts as a micro-batch."""
    step()


def run_steps(job: Job, watch: Watch, steps: int) -> None:
    """Take steps while the watch looks on, and tell it whose memory is whose."""
    tag_weights(job, watch)
    moving = set_in_motion(job)
    follow_optimizers(moving.optimizers, watch)
    job.model.train()
    with Feed(job, moving.progress) as feed:
        for step in range(1, steps + 1):
            watch.begin_step(step)
            take_step(job, moving, feed)


def run_stage1(job: Job, watch: Watch, steps: int) -> None:
    """The same for the critic's stage 1."""
    critic, head = find_critic(job.settings.recipe.weighting), job.value_head
    assert critic is not None
    assert head is not None
    tag_weights(job, watch)
    learning = Learning(head, value_optimizers(job, head), ValueProgress(), {})
    follow_optimizers(learning.optimizers, watch)
    data = build_value_data(job, critic)
    states = FrozenStates(job, data.learned, WHOLE_DOCUMENTS_BYTES if data.pairs is None else 0)
    first_bad = torch.full((), torch.inf, device=job.device.torch_device)
    job.model.eval()
    for step in range(steps):
        watch.begin_step(step + 1)
        total, count = batch_loss(job, critic, head, data, states, step)
        learn_values(job, learning, first_bad, total, count)


def tag_weights(job: Job, watch: Watch) -> None:
    """Tag what is there before the first step."""
    for module in (job.model, job.value_head):
        if module is not None:
            watch.tag((*module.parameters(), *module.buffers()), "weights")
    if job.reference is not None:
        held = job.reference.model
        watch.tag((*held.parameters(), *held.buffers()), "reference")


def follow_optimizers(optimizers: Optimizers, watch: Watch) -> None:
    """Tag gradients, which keep their memory from the first micro-batch on, and states."""

    def before(optimizer: Optimizer, *_: object) -> None:
        groups = optimizer.param_groups
        watch.tag((p.grad for group in groups for p in group["params"]), "gradients")

    def after(optimizer: Optimizer, *_: object) -> None:
        states = (value for state in optimizer.state.values() for value in state.values())
        watch.tag((value for value in states if isinstance(value, torch.Tensor)), "optimizer")

    for optimizer in optimizers:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
