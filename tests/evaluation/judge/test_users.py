"""The same verdicts for root and for an ordinary user, with one worker and two, on a busy machine.

``make judge-check`` judges every reference solution and every buggy program in each of these ways,
and prints a table; ``make test`` a few of them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import wmtp

from .conftest import busy

DATA = Path(os.environ.get("WMTP_DATA") or "absent") / "code"
FULL = os.environ.get("WMTP_JUDGE_CHECK") == "full"
EVERY = 1 if FULL else 60
ORDINARY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
FILES = ("HumanEval.jsonl.gz", "mbpp.jsonl", "humanevalpack_python.jsonl")

JUDGE_ALL = """
import json, sys
from wmtp.evaluation import Judge, Limits
from wmtp.evaluation.problems import load_problems
pack, workers, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
buggy = {}
with open(pack, encoding="utf-8") as file:
    for row, problem in zip(map(json.loads, file), load_problems(pack).values()):
        buggy[problem.name] = problem.beginning + row["buggy_solution"]
kinds = {"humaneval": ("humaneval", None), "mbpp": ("mbpp", None), "buggy": (pack, buggy)}
found = {}
with Judge() as judge:
    for kind, (source, programs) in kinds.items():
        cases = [
            p.case(programs[p.name] if programs else p.reference, Limits(), p.name)
            for p in list(load_problems(source).values())[::every]
        ]
        verdicts = judge.judge_many(cases, workers)
        found[kind] = {case.name: verdict.status for case, verdict in verdicts}
    print(json.dumps([judge.isolation, found]))
"""

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason="WMTP_DATA names no folder with code/"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else"),
]


@dataclass(frozen=True)
class Readable:
    """What any user can read: a Python, and copies of the package and the problems."""

    python: str
    folder: Path

    def run(self, user: list[str], workers: int) -> tuple[str, dict[str, dict[str, str]]]:
        """Isolation, and the status of each program of each kind."""
        environment = {
            "PYTHONPATH": str(self.folder),
            "PATH": os.environ["PATH"],
            "WMTP_DATA": str(self.folder),
        }
        # by way of a shell: setpriv itself may still start what such a user may not
        command = [
            *user, "sh", "-c", 'exec "$0" "$@"', self.python, "-B", "-c", JUDGE_ALL,
            str(self.folder / "code" / FILES[2]), str(workers), str(EVERY),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        isolation, found = json.loads(done.stdout)
        return isolation, found


@pytest.fixture(scope="module")
def readable() -> Iterator[Readable]:
    folder = Path(tempfile.mkdtemp(prefix="wmtp-any-user-"))  # pytest's own are root's alone
    try:
        folder.chmod(0o755)
        (folder / "code").mkdir()
        for name in FILES:
            shutil.copy(DATA / name, folder / "code" / name)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(wmtp.__file__).parent, folder / "wmtp", ignore=ignored)
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        yield Readable(_python(folder), folder)
    finally:
        shutil.rmtree(folder)


def _python(folder: Path) -> str:
    """One that an ordinary user can start, and that is new enough."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv here")
    code = "import sys, wmtp; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        able = subprocess.run(
            [*ORDINARY, "sh", "-c", 'exec "$0" "$@"', python, "-B", "-c", code],
            env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
            capture_output=True, cwd="/",
        )  # fmt: skip
        if able.returncode == 0:
            return python
    pytest.skip("no Python that an ordinary user can read")


def differences(found: dict[str, dict[str, str]]) -> list[str]:
    """Reference solutions that did not pass, and buggy programs that did."""
    return [
        f"{kind} {name}: {status}"
        for kind, statuses in found.items()
        for name, status in statuses.items()
        if (status == "passed") == (kind == "buggy")
    ]


@pytest.mark.slow
def test_users_workers_and_other_work_change_no_verdict(
    readable: Readable, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = [("root", 1, False), ("ordinary", 1, False), ("root", 2, False),
            ("ordinary", 2, False), ("root", 2, True), ("ordinary", 2, True)]  # fmt: skip
    table = ["| user | workers | other work | HumanEval | MBPP | buggy | seconds |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    wrong: list[str] = []
    for user, workers, hogs in ways if FULL else [ways[3], ways[4]]:
        began = time.monotonic()
        with busy(hogs):
            isolation, found = readable.run(ORDINARY if user == "ordinary" else [], workers)
        assert isolation.startswith("kernel: landlock"), isolation
        if FULL:
            counts = {kind: len(statuses) for kind, statuses in found.items()}
            assert counts == {"humaneval": 164, "mbpp": 974, "buggy": 164}
        wrong += [f"{user}, {workers} workers, busy {hogs}: {one}" for one in differences(found)]
        passed = [Counter(statuses.values())["passed"] for statuses in found.values()]
        shares = [
            f"{share} of {len(statuses)} passed"
            for share, statuses in zip(passed, found.values(), strict=True)
        ]
        seconds = f"{time.monotonic() - began:.0f}"
        cells = [user, str(workers), "endless programs" if hogs else "none", *shares, seconds]
        table.append(f"| {' | '.join(cells)} |")
    if FULL:
        with capsys.disabled():
            print("\n" + "\n".join(table))
    assert wrong == []


def test_a_wrong_verdict_would_be_noticed() -> None:
    right = {"humaneval": {"a": "passed"}, "buggy": {"b": "failed"}}
    assert differences(right) == []
    assert differences({"humaneval": {"a": "timeout"}, "buggy": {"b": "passed"}}) == [
        "humaneval a: timeout",
        "buggy b: passed",
    ]
