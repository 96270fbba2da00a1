"""A real S3 server on this machine, which can be told to fail."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import boto3
import fsspec
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from wmtp.checkpoints.object_store import _S3_OPTIONS as OPTIONS

BUCKET = "runs"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "an-access-key-of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "a-secret-key-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Server:
    """Moto behind a switch.

    Attributes:
        refuses_after: further PUTs that are answered before all others get 503; None for no end.
        stalls_after: the same, but they are never answered.
        stalled: set once one is not answered.
        puts: objects written, in order.
    """

    def __init__(self) -> None:
        self.refuses_after: int | None = None
        self.stalls_after: int | None = None
        self.stalled = threading.Event()
        self.puts: list[str] = []
        self._let_go = threading.Event()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].count("/") > 1:
            if self.refuses_after == 0:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
            if self.stalls_after == 0:
                self.stalled.set()
                self._let_go.wait(30)
            self.refuses_after = None if self.refuses_after is None else self.refuses_after - 1
            self.stalls_after = None if self.stalls_after is None else self.stalls_after - 1
            self.puts.append(environ["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
        return self._moto(environ, start)

    def recover(self) -> None:
        """Answer everything again."""
        self.refuses_after = self.stalls_after = None
        self._let_go.set()

    def close(self) -> None:
        self.recover()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def s3_server() -> Iterator[Server]:
    """A server with an empty bucket; the environment leads every client to it."""
    before = dict(os.environ)
    server = Server()
    files = fsspec.get_filesystem_class("s3")
    known = files.retries, OPTIONS["config_kwargs"]
    # who asks again waits longer each time
    files.retries, OPTIONS["config_kwargs"] = 1, known[1] | {"retries": {"max_attempts": 0}}
    os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=server.url)
    try:
        with urlopen(Request(f"{server.url}/moto-api/reset", method="POST")):
            pass  # what it holds belongs to the process, not to the server
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield server
    finally:
        boto3.client("s3").close()
        files.retries, OPTIONS["config_kwargs"] = known
        files.clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)
        server.close()
