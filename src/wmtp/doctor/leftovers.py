"""What must not be there when all is done: fallbacks to the CPU, semaphores that nobody freed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import wmtp
from wmtp.doctor.finding import Finding, judged, not_checked
from wmtp.runtime.device import Kind

FALLBACK = "fall back to run on the CPU"
"""In every warning of torch about an operation without a kernel of MPS."""

LEAK = "leaked semaphore"
"""In Python's warning at the end of a process."""

_SECONDS = 120


def fallbacks_are_none(messages: Sequence[str], kinds: Sequence[Kind]) -> Finding:
    """No operation of all that ran went to the CPU for want of a kernel."""
    name = "fallback warnings"
    if "mps" not in kinds:
        return not_checked(name, "only MPS falls back")
    found = [message for message in messages if FALLBACK in message]
    first = f": {found[0].splitlines()[0]}" if found else ""
    return judged(name, not found, f"{len(found)}{first}")


def start_run_with_worker(config: Path, recipe: Path, run_name: str) -> "subprocess.Popen[str]":
    """Start two steps whose micro-batches a worker process makes, as a command of its own."""
    sets = [
        "data.train.num_workers=1",
        "train.max_steps=2",
        "mlflow.enabled=false",
        "paths.checkpoints.save_final=false",
    ]
    command = [sys.executable, "-m", "wmtp", "train", "--config", str(config)]
    command += ["--recipe", str(recipe), "--run-name", run_name]
    command += [word for text in sets for word in ("--set", text)]
    package = str(Path(wmtp.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def semaphores_are_freed(process: "subprocess.Popen[str]") -> Finding:
    """That command trained, and left nothing behind."""
    name = "leaked semaphores"
    try:
        _, told = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return judged(name, False, f"wmtp train with a worker did not end in {_SECONDS} s")
    if process.returncode != 0:
        last = (told.strip().splitlines() or ["it said nothing"])[-1]
        return judged(name, False, f"wmtp train with a worker ended with {process.returncode}: "
                      f"{last}")  # fmt: skip
    leaks = [line for line in told.splitlines() if LEAK in line]
    return judged(
        name, not leaks, leaks[0].strip() if leaks else "none after a run with a worker process"
    )
