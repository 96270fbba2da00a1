"""Environment variables that other libraries read while they are being imported.

Imports nothing but ``os`` and ``sys``, so that a command can call it before torch is there.
"""

import os
import sys
from typing import Final

HIGH_WATERMARK: Final = 0.9
LOW_WATERMARK: Final = 0.8
"""Shares of the memory that is recommended on MPS. torch's own 1.7 lets a job that is too big swap
for hours instead of failing."""

_LIBRARY_DEFAULTS = {
    # a fork after the first use of a fast tokenizer would print a warning and slow it down
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own defaults let one call to a dead server block for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # a server may ask for an hour's wait, and MLflow would sleep for it
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}

MPS_VARIABLES = (
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
    "PYTORCH_MPS_LOW_WATERMARK_RATIO",
)


def set_environment_before_torch(
    *,
    mps_fallback_to_cpu: bool | None = None,
    mps_high_watermark: float | None = None,
    mps_low_watermark: float | None = None,
) -> bool:
    """Set what torch, tokenizers and MLflow read once, when they are imported.

    The three settings of the config win over the shell, because ``run.yaml`` records them; None
    leaves the variable as the shell has it, or as an earlier call set it. Watermarks that nobody
    set, and the defaults for other libraries, only fill gaps.

    Args:
        mps_fallback_to_cpu: run operations that MPS lacks on the CPU (slow, and hides it).
        mps_high_watermark: share of the recommended memory above which MPS refuses to allocate.
        mps_low_watermark: share above which MPS starts to free its caches; at most the high one.

    Returns:
        True if torch was not imported yet, so that every variable takes effect.
    """
    in_time = "torch" not in sys.modules
    if mps_fallback_to_cpu is not None:
        os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "1" if mps_fallback_to_cpu else "0"
    if mps_high_watermark is not None:
        os.environ["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] = str(mps_high_watermark)
    if mps_low_watermark is not None:
        os.environ["PYTORCH_MPS_LOW_WATERMARK_RATIO"] = str(mps_low_watermark)
    high = os.environ.setdefault("PYTORCH_MPS_HIGH_WATERMARK_RATIO", str(HIGH_WATERMARK))
    os.environ.setdefault("PYTORCH_MPS_LOW_WATERMARK_RATIO", _low_watermark_below(high))
    for name, value in _LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    return in_time


def _low_watermark_below(high: str) -> str:
    """The default, but not above a high one of the shell's, which torch refuses; 0 means no bound.

    Example:
        >>> _low_watermark_below("0.9"), _low_watermark_below("0.5"), _low_watermark_below("0.0")
        ('0.8', '0.5', '0.8')
    """
    try:
        bound = float(high)
    except ValueError:  # torch will say so
        return str(LOW_WATERMARK)
    return str(min(LOW_WATERMARK, bound) if bound > 0 else LOW_WATERMARK)
