"""Runs ``wmtp`` again and again as real processes without importing torch again and again.

One JSON object per line comes in on standard input, one answer goes out:

    {"start": ["train", ...], "cwd": ..., "output": FILE, ...}   ->   {"pid": 123}
    {"wait": 123}                                                ->   {"status": 0}, once it ended

A child equals a fresh ``python -m wmtp``: this process only imports modules. It starts no thread
(torch is held to one), draws no random number, opens no file of wmtp's and parses no argument, so
that everything a run does still lies ahead of the child, which runs ``wmtp.cli.main`` and leaves
through the interpreter's ordinary end. What could still differ (a hash seed that is shared, say)
would show up against the undisturbed runs, which are made by ``python -m wmtp``.
"""

import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# calls by which a checkpoint comes to be on the disk; pathlib and shutil come through here too
CALLS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")


def kill_before(number: int) -> None:
    """Have this process killed in place of its ``number``-th call on what is being saved."""
    made = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal made
            made += is_temporary(arguments[0])
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def is_temporary(place: Any) -> bool:
    """Whether a path, or an open file, has a temporary name or lies below one."""
    if isinstance(place, int):
        place = os.readlink(f"/proc/self/fd/{place}")
    return "/.tmp-" in os.fspath(place)


def hang_in_saves() -> None:
    """Have each save that this process makes last for a minute; ``hangs`` is there meanwhile."""
    from wmtp.state import Snapshot

    def write(snapshot: Snapshot, folder: Path, ranks: Any) -> None:
        Path("hangs").touch()
        time.sleep(60)

    Snapshot.write = write  # type: ignore[method-assign]


def stop_at_look(number: int) -> None:
    """Have this process find, when it looks the ``number``-th time, that a signal came."""
    from wmtp.runtime.stopping import StopRequest

    looks = 0

    def requested(_: StopRequest) -> bool:
        nonlocal looks
        looks += 1
        return looks >= number

    StopRequest.requested = property(requested)  # type: ignore[assignment,method-assign]


def become(request: dict[str, Any]) -> None:
    """Turn a forked child into the program: own session, own standard files, then ``main``."""
    os.setsid()  # what it leaves behind is found by its session
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores Ctrl-C
        signal.signal(number, signal.SIG_DFL)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, standard)
    os.close(output)
    os.close(nothing)
    os.chdir(request["cwd"])
    if request.get("gate"):  # a tracer attaches meanwhile
        with open(request["gate"]) as gate:
            gate.read()
    if request.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    os.environ.update(request.get("environment", {}))
    if request.get("kill_before"):
        kill_before(request["kill_before"])
    if request.get("stop_at_look"):
        stop_at_look(request["stop_at_look"])
    if request.get("hang_in_saves"):
        hang_in_saves()
    if request.get("temporary"):
        os.environ["TMPDIR"] = tempfile.tempdir = request["temporary"]
    if request.get("start_method"):
        multiprocessing.set_start_method(request["start_method"], force=True)
    sys.argv = ["wmtp", *request["start"]]
    from wmtp.cli import main

    main()


def import_everything() -> None:
    """Import what any command would import, and nothing that needs what is not installed."""
    import torch

    import wmtp

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(wmtp.__path__, "wmtp."):
        if module.name not in NOT_IMPORTED:
            importlib.import_module(module.name)


NOT_IMPORTED = ("wmtp.__main__", "wmtp.loss.softmax_kernel", "wmtp.harness.model")
"""A program; what needs Triton; what needs lm-evaluation-harness."""


def serve() -> None:
    import_everything()
    gc.collect()
    gc.freeze()  # else each child's collector writes to, and so copies, all that was imported
    print(json.dumps({"ready": os.getpid()}), flush=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            child = os.fork()
            if child == 0:
                become(request)
                return
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
