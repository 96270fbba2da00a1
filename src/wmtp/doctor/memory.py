"""Will a recipe fit: its peak is found by simulating steps without numbers."""

from wmtp.config import Settings
from wmtp.doctor.finding import Finding, judged
from wmtp.memory_plan import predict
from wmtp.runtime.device import choose_device, memory_limit
from wmtp.runtime.machine import GIBIBYTE


def memory_is_enough(settings: Settings) -> Finding:
    """The predicted peak is within what a run may be planned to hold here."""
    devices = settings.config.devices
    device = choose_device(devices.compute_backend, devices.mixed_precision)
    peak = predict(settings, device.kind).peak_bytes
    limit = memory_limit(device.kind)
    assert limit is not None, "a device that was chosen is there"
    found = (
        f"{peak / GIBIBYTE:.2f} GiB predicted on {device.kind}; planned for are "
        f"{limit.bytes / GIBIBYTE:.1f} GiB, {limit.reason}"
    )
    fits = peak <= limit.bytes
    advice = "; lower data.train.batch_size and raise train.gradient_accumulation"
    return judged("memory of a run", fits, found if fits else found + advice)
