"""Before a sandbox is trusted it is attacked: by a program in it, seen from outside."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wmtp.evaluation.sandbox.verdict import Limits, Verdict

ATTACK: Final = Path(__file__).with_name("attack.py")
LIMITS: Final = Limits(seconds=10.0, memory_mb=256)
# by itself: where memory is watched, too much of it ends the program
_TAKE_MEMORY: Final = "import time\nkept = bytearray(1 << 30)\ntime.sleep(1)\n"

RunScript = Callable[[str, str, Limits], tuple[Verdict, str]]
"""A program, its standard input and its limits, to what came of it and what it printed."""


def successful_attacks(run: RunScript) -> list[str]:
    """What a program in the sandbox could do that it must not; nothing, if the sandbox holds."""
    with (
        tempfile.TemporaryDirectory(prefix="wmtp-canary-") as folder,
        socket.create_server(("127.0.0.1", 0)) as by_ip,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as by_path,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        canary = Path(folder).resolve() / "canary"
        canary.write_text("canary")
        canary.chmod(0o644)
        Path(f"{canary}.removable").touch()
        by_path.bind(f"{canary}.socket")
        by_path.listen()
        datagrams.bind(f"{canary}.datagrams")
        before = sorted(os.listdir(folder))
        target = {
            "canary": str(canary),
            "port": by_ip.getsockname()[1],
            "socket": f"{canary}.socket",
            "datagrams": f"{canary}.datagrams",
            "program": shutil.which("true") or "/bin/true",
        }
        verdict, printed = run(ATTACK.read_text(), json.dumps(target), LIMITS)
        found = [line.replace("_", " ") for line in printed.split("\n") if line and line != "done"]
        if not verdict.passed or not printed.endswith("done\n"):
            found.append(f"end its supervision ({verdict.status}: {verdict.detail})")
        if sorted(os.listdir(folder)) != before or canary.stat().st_mode & 0o777 != 0o644:
            found.append("change files outside")
        for listener in (by_ip, by_path, datagrams):
            if _was_reached(listener):
                found.append("reach a socket outside")
    greedy, _ = run(_TAKE_MEMORY, "", LIMITS)
    if greedy.status != "memory":
        found.append(f"take memory ({greedy.status}: {greedy.detail})")
    return list(dict.fromkeys(found))


def _was_reached(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        if listener.type == socket.SOCK_DGRAM:
            listener.recv(1)
        else:
            listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
