"""A small MLflow server that keeps what it is sent, and misbehaves in every way we know of."""

import json
import socket
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

BAD_WAYS = (
    "hang", "trickle", "trickle a head", "401", "403", "500", "html", "garbage", "other json",
    "drop", "redirect", "retry-after",
)  # fmt: skip


class FakeMlflow:
    """The part of MLflow's REST interface that a run needs.

    Attributes:
        way: "good", or one of ``BAD_WAYS``; may be changed at any time.
        artifacts_way: of artifacts alone.
        batches_way: of metrics, parameters and tags alone.
        metrics: every metric as it came, ``(name, step, value)``; a repeated one counts once if
            its time is the same, as in MLflow.
        files: path under the run's artifacts, and content.
    """

    def __init__(self, way: str = "good", port: int = 0) -> None:
        self.way = way
        self.artifacts_way = "good"
        self.batches_way = "good"
        self.run_id = uuid.uuid4().hex  # MLflow remembers where a run's artifacts go
        self.requests = 0
        self.runs = 0
        self.status = ""
        self.name = ""
        self.parameters: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self._metrics: dict[tuple[str, int, float, int], None] = {}
        self._lock = threading.Lock()
        self._let_go = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def metrics(self) -> list[tuple[str, int, float]]:
        with self._lock:
            return sorted((name, step, value) for name, step, value, _ in self._metrics)

    def uri(self, login: str = "") -> str:
        return f"http://{login}127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.requests += 1
                try:
                    way = fake.way
                    if way == "good" and self.command == "PUT":
                        way = fake.artifacts_way
                    if way == "good" and self.path.endswith("/log-batch"):
                        way = fake.batches_way
                    if way == "good":
                        fake._answer_well(self, body)
                    else:
                        fake._answer_badly(self, way)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = _do

        return Handler

    def _answer_well(self, to: BaseHTTPRequestHandler, body: bytes) -> None:
        url = urlsplit(to.path)
        call = url.path.removeprefix("/api/2.0/mlflow/")
        if to.command == "PUT":
            self.files[url.path.partition("/artifacts/0/1/artifacts/")[2]] = body
            return reply(to, 200, b"{}")
        asked = json.loads(body) if body else parse_qs(url.query)
        answer: dict[str, Any] = {}
        with self._lock:
            if call == "experiments/get-by-name":
                error = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"}
                return reply(to, 404, json.dumps(error).encode())
            if call == "experiments/create":
                answer = {"experiment_id": "7"}
            elif call == "runs/create":
                self.runs, self.name, self.status = self.runs + 1, asked["run_name"], "RUNNING"
                answer = {"run": self._run()}
            elif call == "runs/get":
                answer = {"run": self._run()}
            elif call == "runs/update":
                self.status = asked["status"]
                answer = {"run_info": self._run()["info"]}
            elif call == "runs/log-batch":
                for one in asked.get("metrics", []):
                    # JSON of protobuf: 64-bit numbers may come as text
                    step, stamp = int(one.get("step", 0)), int(one["timestamp"])
                    self._metrics[one["key"], step, float(one["value"]), stamp] = None
                self.parameters |= {p["key"]: p.get("value", "") for p in asked.get("params", [])}
                self.tags |= {t["key"]: t.get("value", "") for t in asked.get("tags", [])}
            else:
                return reply(to, 404, b"{}")
        return reply(to, 200, json.dumps(answer).encode())

    def _run(self) -> dict[str, Any]:
        return {
            "info": {
                "run_id": self.run_id, "run_name": self.name, "experiment_id": "7",
                "status": self.status, "lifecycle_stage": "active",
                "artifact_uri": "mlflow-artifacts:/0/1/artifacts",
            },
            "data": {
                "params": [{"key": k, "value": v} for k, v in self.parameters.items()],
                "metrics": [
                    {"key": name, "step": step, "value": value, "timestamp": stamp}
                    for name, step, value, stamp in self._metrics
                ],
            },
        }  # fmt: skip

    def _answer_badly(self, to: BaseHTTPRequestHandler, way: str) -> None:
        login = to.headers.get("Authorization", "none")
        if way == "hang":
            self._let_go.wait(300)
            to.close_connection = True
        elif way in ("trickle", "trickle a head"):
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
            if way == "trickle":
                to.wfile.write(head)
            self._trickle(to, head if way == "trickle a head" else b" " * 100000)
        elif way in ("401", "403", "500"):
            # as some do, it shows the caller what it was sent
            reply(to, int(way), f"<html>no: {{'Authorization': '{login}'}}</html>".encode())
        elif way == "html":
            reply(to, 200, b"<html><body>Log in to the guest network</body></html>")
        elif way == "garbage":
            reply(to, 200, b'{"run": {"info": \xff\x00[1, 2')
        elif way == "other json":
            reply(to, 200, b'{"hello": "world"}')
        elif way == "drop":
            to.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"run":')
            to.wfile.flush()
            to.connection.shutdown(socket.SHUT_RDWR)
            to.close_connection = True
        elif way == "redirect":
            reply(to, 307, b"", ("Location", to.path))
        elif way == "retry-after":
            reply(to, 503, b"later", ("Retry-After", "3600"))

    def _trickle(self, to: BaseHTTPRequestHandler, content: bytes) -> None:
        to.close_connection = True
        for i in range(len(content)):
            to.wfile.write(content[i : i + 1])
            to.wfile.flush()
            if self._let_go.wait(1):
                return


def reply(to: BaseHTTPRequestHandler, status: int, body: bytes, *headers: tuple[str, str]) -> None:
    to.send_response(status)
    for name, value in headers:
        to.send_header(name, value)
    to.send_header("Content-Length", str(len(body)))
    to.end_headers()
    to.wfile.write(body)


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
