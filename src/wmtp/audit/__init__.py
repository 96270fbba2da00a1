"""What training would ask of a device, found without the device: operations, shapes, memory."""

from wmtp.audit.apart import Failed, Request, simulate_apart
from wmtp.audit.simulate import STEPS, simulate_here
from wmtp.audit.trace import PARTS, Allocation, Form, Operation, Part, Trace
from wmtp.config import Settings
from wmtp.errors import DeviceError
from wmtp.runtime.device import Kind

__all__ = [
    "PARTS",
    "Allocation",
    "Failed",
    "Form",
    "Operation",
    "Part",
    "Request",
    "Trace",
    "simulate",
    "simulate_apart",
]


def simulate(
    settings: Settings,
    *,
    device_type: Kind,
    steps: int = STEPS,
    scores_cached: bool = True,
    vocab_size: int | None = None,
    tiled_attention: bool | None = None,
) -> Trace:
    """Take the first training steps of a run without its numbers.

    Args:
        settings: config and recipe; the data and weights that they name need not be there.
        device_type: where the tensors pretend to be; ``mps`` in a process of its own.
        steps: how many; at least 2 to see the optimizer's state at the peak.
        scores_cached: rho1's reference scores come with the data; False runs the reference.
        vocab_size: of the tokenizer, where it is known; else found as a run would find it.
        tiled_attention: attention is made in tiles; None as the device likes it.

    Raises:
        DeviceError: this machine lacks what simulating the device takes.
        WmtpError: a config or tokenizer that the sizes depend on cannot be read.
    """
    if device_type == "cpu":
        return simulate_here(
            settings,
            device_type=device_type,
            steps=steps,
            scores_cached=scores_cached,
            vocab_size=vocab_size,
            tiled_attention=tiled_attention,
        )
    request = Request(settings, device_type, steps, scores_cached, vocab_size, tiled_attention)
    (outcome,) = simulate_apart([request])
    if isinstance(outcome, Failed):
        raise DeviceError(f"the step could not be simulated on {device_type}: {outcome.message}")
    return outcome
