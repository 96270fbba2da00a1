"""The fork server as the judging process sees it: started, asked, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Final, final

from wmtp.errors import SandboxError
from wmtp.evaluation.sandbox.inside.frames import REQUEST, Channel, Ended, MalformedMessageError
from wmtp.evaluation.sandbox.isolation import ENVIRONMENT, Isolation

_START_SECONDS: Final = 300.0  # WebAssembly may have to be compiled, on a machine that is busy
_GRACE_SECONDS: Final = 60.0
_END_SECONDS: Final = 10.0


@final
class Server:
    """A fork server that runs, confined in one way; safe to be asked from several threads.

    Raises:
        SandboxError: it did not start, or its machine lacks what was asked for.
    """

    def __init__(self, isolation: Isolation) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="wmtp-judge-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        work = Path(self._folder.name).resolve()
        # programs inherit these streams, and have pipes there: neither can be sought in
        nothing_in, nothing_out = os.pipe()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*isolation.command(work), str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),), env=ENVIRONMENT, cwd="/", process_group=0,
                    stdin=nothing_in, stdout=nothing_out, stderr=nothing_out,
                )  # fmt: skip
        except OSError as error:
            self._forget()
            raise SandboxError(f"{isolation.name}: {error}") from error
        finally:
            os.close(nothing_in)
            os.close(nothing_out)
        self.layers = self._greet(isolation, work)

    def _greet(self, isolation: Isolation, work: Path) -> tuple[str, ...]:
        self._control.settimeout(_START_SECONDS)
        channel = channel_over(self._control)
        try:
            channel.send(
                {
                    "layers": sorted(isolation.layers),
                    "work": str(work),
                    "wasm": dict(isolation.wasm),
                }
            )
            answer = channel.receive()
        except (Ended, MalformedMessageError, OSError) as error:
            self.close()
            raise SandboxError(f"{isolation.name}: its Python did not start") from error
        if "error" in answer:
            self.close()
            raise SandboxError(f"{isolation.name}: {answer['error']}")
        return tuple(answer["layers"])

    def run(
        self, request: dict[str, Any], program: str, stdin: bytes, tests: str | None
    ) -> tuple[dict[str, Any], bytes] | None:
        """Have a program run; gives result and output, or None if its supervisor was ended.

        Raises:
            SandboxError: the server is no more.
        """
        limits = request["limits"]
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                try:
                    told = REQUEST.pack(limits["cpu_seconds"], limits["wall_seconds"])
                    socket.send_fds(self._control, [told], [theirs.fileno()])
                except OSError as error:
                    raise SandboxError("the sandbox has ended; judge again") from error
            ours.settimeout(limits["wall_seconds"] + _GRACE_SECONDS)
            channel = channel_over(ours)
            try:
                channel.send(request)
                channel.send(program)
                channel.send_bytes(stdin)
                if tests is not None:
                    channel.send({"tests": tests})
            except (Ended, OSError):
                pass  # it has been judged before it got to its tests
            try:
                return channel.receive(), channel.receive_bytes()
            except (Ended, MalformedMessageError, OSError):
                return None

    def close(self) -> None:
        """End the server and everything in it."""
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._forget()

    def _forget(self) -> None:
        self._control.close()
        self._folder.cleanup()


def channel_over(connection: socket.socket) -> Channel:
    """Messages over a socket that may have a timeout."""
    return Channel(connection.recv, lambda view: connection.send(view))
