"""Will a recipe fit: its peak is found by simulating steps without numbers."""

from wmtp.audit.simulate import simulate_here
from wmtp.config import Settings
from wmtp.doctor.finding import Finding, judged
from wmtp.runtime.device import Device, choose_device
from wmtp.runtime.machine import GIBIBYTE, this_machine

SHARE = 0.75
"""Of what is recommended on a device, or of a machine's memory: the rest is for other programs and
for what allocators hold in reserve."""


def predicted_peak_bytes(settings: Settings, device: Device) -> int:
    """The most that tensors of a run's steps hold at one time.

    More micro-batches than two hold no more: the second one has the gradients of the first.
    """
    recipe = settings.recipe
    few = {"gradient_accumulation": min(2, recipe.train.gradient_accumulation)}
    train = recipe.train.model_copy(update=few)
    short = settings.model_copy(update={"recipe": recipe.model_copy(update={"train": train})})
    trace = simulate_here(short, device_type=device.kind, steps=2, scores_cached=False)
    return trace.peak_bytes


def memory_is_enough(settings: Settings) -> Finding:
    """The predicted peak is within three quarters of what there is."""
    devices = settings.config.devices
    device = choose_device(devices.compute_backend, devices.mixed_precision)
    peak = predicted_peak_bytes(settings, device)
    there = device.recommended_memory_bytes() or this_machine().memory_bytes
    found = (
        f"{peak / GIBIBYTE:.2f} GiB predicted on {device.kind}; three quarters of "
        f"{there / GIBIBYTE:.1f} GiB are {there * SHARE / GIBIBYTE:.1f}"
    )
    fits = peak <= there * SHARE
    advice = "; lower data.train.batch_size and raise train.gradient_accumulation"
    return judged("memory of a run", fits, found if fits else found + advice)
