"""Simulated steps in a process of their own, which may take itself for one on a Mac.

``simulate_apart`` starts ``python -m wmtp.audit FOLDER``. The folder holds a config and a
recipe for each request; what happened comes back as a line of JSON for each.
"""

import inspect
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wmtp.audit import pretend
from wmtp.audit.simulate import STEPS, simulate_here
from wmtp.audit.trace import Trace, trace_from_dict
from wmtp.config import Settings
from wmtp.config_check import load_settings
from wmtp.errors import DeviceError, WmtpError
from wmtp.runtime.device import Kind
from wmtp.weighting import Weighting

REQUESTS = "requests.json"


@dataclass(frozen=True)
class Request:
    """Steps to simulate; see ``simulate.simulate``.

    Attributes:
        stage1: the steps in which the critic's value head learns first.
        strict: a warning is an error.
    """

    settings: Settings
    device_type: Kind = "mps"
    steps: int = STEPS
    scores_cached: bool = True
    vocab_size: int | None = None
    tiled_attention: bool | None = None
    stage1: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Failed:
    """Why steps could not be simulated.

    Attributes:
        message: what was raised, and where.
        ours: it was meant for the user, as a ``WmtpError``.
    """

    message: str
    ours: bool


def simulate_apart(requests: Sequence[Request]) -> Iterator[Trace | Failed]:
    """What each request gave, one after the other as they are done.

    Raises:
        DeviceError: the process could not be started, or ended early.
    """
    problem = pretend.why_not()
    if problem is not None and any(one.device_type == pretend.PRETENDED for one in requests):
        raise DeviceError(f"mps cannot be simulated here: {problem}.")
    with tempfile.TemporaryDirectory(prefix="wmtp-audit-") as folder:
        write_requests(Path(folder), requests)
        command = [sys.executable, "-P", "-m", "wmtp.audit", folder]
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
        ):
            assert process.stdout is not None
            done = 0
            try:
                for line in process.stdout:
                    values = json.loads(line)
                    done += 1
                    yield Failed(**values) if "message" in values else trace_from_dict(values)
            except BaseException:  # whoever asked wants no more, or was interrupted
                process.kill()
                raise
            if process.wait() or done < len(requests):
                said.seek(0)
                last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
                raise DeviceError(f"the simulation ended early: {last}")


def write_requests(folder: Path, requests: Sequence[Request]) -> None:
    """Write what ``read_requests`` reads."""
    rest = []
    for number, one in enumerate(requests):
        for name, values in as_files(one.settings).items():
            (folder / f"{name}-{number}.json").write_text(json.dumps(values), encoding="utf-8")
        rest.append({k: v for k, v in vars(one).items() if k != "settings"})
    (folder / REQUESTS).write_text(json.dumps(rest), encoding="utf-8")


def read_requests(folder: Path) -> Iterator[Callable[[], Request]]:
    """The requests in a folder, each read when it is called for."""
    for number, rest in enumerate(json.loads((folder / REQUESTS).read_text(encoding="utf-8"))):
        files = [str(folder / f"{name}-{number}.json") for name in ("config", "recipe")]

        def read(files: list[str] = files, rest: dict[str, Any] = rest) -> Request:
            return Request(load_settings(*files), **rest)

        yield read


def as_files(settings: Settings) -> dict[str, Any]:
    """Config and recipe as files would say it; a weighting of the user's by its full path."""
    values = settings.as_dict()
    fields = values["recipe"]["weighting"]
    weighting: Weighting | None = settings.recipe.weighting
    while weighting is not None:
        if weighting.algorithm.endswith(".py"):
            fields["algorithm"] = str(Path(inspect.getfile(type(weighting))).resolve())
        inner = dict(weighting).get("around")
        weighting, fields = (
            (inner, fields["around"]) if isinstance(inner, Weighting) else (None, {})
        )
    return values


def answer(request: Callable[[], Request]) -> Trace | Failed:
    """Simulate one request in this process; whatever goes wrong is told."""
    try:
        one = request()
        with warnings.catch_warnings():
            warnings.simplefilter("error" if one.strict else "ignore")
            return simulate_here(
                one.settings,
                device_type=one.device_type,
                steps=one.steps,
                scores_cached=one.scores_cached,
                vocab_size=one.vocab_size,
                tiled_attention=one.tiled_attention,
                stage1=one.stage1,
            )
    except WmtpError as error:
        return Failed(str(error), ours=True)
    except Exception as error:  # the other requests are to be answered
        traceback, place = error.__traceback__, ""
        while traceback is not None:
            file = traceback.tb_frame.f_code.co_filename
            if "wmtp" in file:
                place = f" at {Path(file).name}:{traceback.tb_lineno}"
            traceback = traceback.tb_next
        first = (str(error).strip().splitlines() or [""])[0]
        return Failed(f"{type(error).__name__}: {first}{place}", ours=False)


def main(folder: Path) -> None:
    """Answer every request in a folder."""
    pretend.pretend()
    for request in read_requests(folder):
        print(json.dumps(asdict(answer(request))), flush=True)
