"""The first micro-batch of a run: its loss and its gradients, by the training code itself."""

import math
from dataclasses import dataclass

from torch import Tensor

from wmtp.doctor.finding import Finding, judged
from wmtp.job import Job
from wmtp.model.multi_token import MultiTokenModel
from wmtp.step import learn, set_in_motion, share_of

SMALLEST_COSINE = {"fp32": 0.9999, "bf16": 0.99}
LARGEST_DIFFERENCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Nats between the losses of two devices."""


@dataclass(frozen=True)
class FirstStep:
    """What one micro-batch gave.

    Attributes:
        loss: in nats.
        gradients: of every trained parameter that got one, on the CPU.
        missing: names of trained parameters that got none.
    """

    loss: float
    gradients: dict[str, Tensor]
    missing: list[str]

    @property
    def not_finite(self) -> list[str]:
        """Names of parameters whose gradient is not a number somewhere."""
        return [name for name, g in self.gradients.items() if not bool(g.isfinite().all())]

    @property
    def norm(self) -> float:
        """Of all gradients together."""
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.gradients.values()))


def take_first_step(job: Job) -> FirstStep:
    """Forward, weigh and backward for the run's first micro-batch; the model stays as it is."""
    moving = set_in_motion(job)
    job.model.train()
    with job.training_batches(start_row=0) as batches:
        batch = next(batches)
    output = learn(job, moving, batch.to(job.device.torch_device), share_of(job, moving, [batch]))
    gradients, missing = {}, []
    for name, parameter in job.model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().float().cpu()
        elif parameter.requires_grad:
            missing.append(name)
        parameter.grad = None
    return FirstStep(output.loss.item(), gradients, missing)


def loss_is_computed(first: FirstStep) -> Finding:
    """A number, and one that a loss can be."""
    return judged(
        "loss computed", math.isfinite(first.loss) and first.loss > 0, f"{first.loss:.4f} nats"
    )


def gradients_are_there(first: FirstStep) -> Finding:
    """Every trained tensor has a gradient, and all of them are numbers."""
    name = "gradients computed"
    for what, names in (("have no gradient", first.missing), ("are not finite", first.not_finite)):
        if names:
            return judged(name, False, f"{len(names)} tensors {what}, such as {names[0]}")
    return judged(
        name, first.norm > 0, f"{len(first.gradients)} tensors, norm {first.norm:.3g}, all finite"
    )


def heads_are_there(model: MultiTokenModel, wanted: int) -> Finding:
    """As many predictions for each position as the recipe asks for, with parameters of their own.

    The first is the trunk's own output; what makes the others are the heads.
    """
    name = "heads there"
    kind = model.heads_shape.kind
    own = 0 if model.heads is None else sum(p.numel() for p in model.heads.parameters())
    found = f"{model.horizon} of kind {kind}, {own:,} parameters beside the trunk's"
    return judged(name, model.horizon == wanted and (own > 0 or wanted == 1), found)


def agreement(expected: FirstStep, found: FirstStep) -> tuple[float, float]:
    """Difference of the losses in nats, and cosine of all gradients taken as one vector."""
    if expected.gradients.keys() != found.gradients.keys():
        return math.inf, -1.0
    product = sum(
        float((g.double() * found.gradients[name].double()).sum())
        for name, g in expected.gradients.items()
    )
    return abs(found.loss - expected.loss), product / max(expected.norm * found.norm, 1e-300)
