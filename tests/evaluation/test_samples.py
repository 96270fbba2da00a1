"""``wmtp judge``: formats in and out, pass@k, and going on where a killed call stopped."""

import json
import os
import random
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.processes.programs import Programs
from wmtp import cli
from wmtp.errors import ConfigError, DataError
from wmtp.evaluation import Limits
from wmtp.evaluation.problems import load_problems
from wmtp.evaluation.samples import check_k, judge_samples, read_samples

PROBLEMS: list[dict[str, Any]] = [
    {"task_id": number, "text": "Add.", "code": "def f(x):\r\n  return x + 1\r\n",
     "test_list": ["assert f(1) == 2"], "test_setup_code": ""}
    for number in (1, 2)
]  # fmt: skip
FULL = os.environ.get("WMTP_JUDGE_CHECK") == "full"
RIGHT, WRONG = "def f(x): return x + 1", "def f(x): return x"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write(tmp_path / "problems.jsonl", PROBLEMS)


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wmtp", "judge", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def test_both_formats_are_judged_and_pass_at_k_is_exact(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write(
        tmp_path / "samples.jsonl",
        [
            {"task_id": 1, "completion": RIGHT},
            {"task_id": "Mbpp/1", "solution": WRONG},
            {"task_id": "2", "completion": WRONG},
            {"task_id": "mbpp/2", "solution": "import os; os._exit(0)"},
        ],
    )
    assert run(samples, "--problems", problems, "--workers", 2, "--k", "1,2") == 0
    printed = capsys.readouterr().out
    assert "pass@1: 0.2500  (1/4 over 2 problems)" in printed
    assert "pass@2: 0.5000  (1/2 over 2 problems)" in printed
    assert "4 samples: 1 passed, 2 failed, 1 killed" in printed
    assert "isolation: kernel: landlock" in printed
    rows = [
        json.loads(line) for line in (tmp_path / "samples_results.jsonl").read_text().splitlines()
    ]
    assert [row["passed"] for row in rows] == [True, False, False, False]
    assert rows[0]["result"] == "passed"
    assert rows[0]["completion"] == RIGHT
    assert all(row["isolation"].startswith("kernel") for row in rows)
    evalplus = json.loads((tmp_path / "samples_results.evalplus.json").read_text())["eval"]
    assert [one["base_status"] for one in evalplus["Mbpp/1"]] == ["pass", "fail"]
    assert evalplus["Mbpp/2"][1]["solution"] == "import os; os._exit(0)"


def test_more_draws_than_samples_are_refused(tmp_path: Path, problems: Path) -> None:
    samples = write(tmp_path / "samples.jsonl", [{"task_id": 1, "completion": RIGHT}])
    read = read_samples(samples, load_problems(str(problems)))
    check_k(read, (1,))
    with pytest.raises(ConfigError, match="Mbpp/1 has 1 sample"):
        check_k(read, (1, 2))
    assert run(samples, "--problems", problems, "--k", "2") == 2
    assert not (tmp_path / "samples_results.jsonl").exists()


def test_a_sample_for_no_problem_is_refused(tmp_path: Path, problems: Path) -> None:
    samples = write(tmp_path / "samples.jsonl", [{"task_id": 9, "completion": RIGHT}])
    with pytest.raises(DataError, match="samples.jsonl:1: task_id names no problem"):
        read_samples(samples, load_problems(str(problems)))


def test_verdicts_of_something_else_are_not_continued(tmp_path: Path, problems: Path) -> None:
    known, out = load_problems(str(problems)), tmp_path / "out.jsonl"
    samples = write(tmp_path / "samples.jsonl", [{"task_id": 1, "completion": RIGHT}])
    judged = judge_samples(read_samples(samples, known), out, Limits())
    assert judged.pass_at(1) == Fraction(1)
    assert judge_samples(read_samples(samples, known), out, Limits()).judged == 0
    write(samples, [{"task_id": 1, "completion": WRONG}])
    with pytest.raises(ConfigError, match="other samples"):
        judge_samples(read_samples(samples, known), out, Limits())


@pytest.mark.skipif(not FULL, reason="make judge-check")
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_nothing_is_judged_twice_or_left_running(
    tmp_path: Path, problems: Path, seed: int
) -> None:
    """Killed again and again, while it starts, judges and writes, until it once is fast enough."""
    chance = random.Random(seed)
    slow = "import time; time.sleep(0.03)\n" + RIGHT
    rows = [{"task_id": 1, "completion": f"{slow}\n# {number}"} for number in range(40)]
    samples, out = write(tmp_path / "samples.jsonl", rows), tmp_path / "out.jsonl"
    programs = Programs(tmp_path)
    lines: list[bytes] = []
    kills = 0
    for _ in range(60):
        given = ("--problems", str(problems), "--out", str(out), "--workers", "2")
        run_of_it = programs.fork("judge", str(samples), *given)
        code = run_of_it.reap(chance.uniform(0.05, 1.2 + kills / 2))
        if code is None:
            if len(lines) < 40:
                kills += 1
            run_of_it.kill()
            run_of_it.reap(10.0)
        assert run_of_it.left_behind(10.0) == []
        if lines and "had been judged before" in run_of_it.said:
            assert f"{len(lines)} of 40 had been judged before" in run_of_it.said
        found = out.read_bytes() if out.exists() else b""
        whole = found[: found.rfind(b"\n") + 1].splitlines()
        assert set(lines) <= set(whole), "a verdict that was there has changed"
        lines = whole
        if code == 0:
            break
    assert code == 0, run_of_it.said
    assert kills, "it was never killed"
    assert Counter(json.loads(line)["sample"] for line in lines) == Counter(range(40))


def test_killed_halfway_it_goes_on_and_judges_nothing_twice(tmp_path: Path, problems: Path) -> None:
    """Each line is written once by whichever call judged it; the kill comes in the middle."""
    slow = "import time; time.sleep(0.05)\n" + RIGHT
    samples = write(
        tmp_path / "samples.jsonl",
        [{"task_id": 1, "completion": f"{slow}\n# {i}"} for i in range(40)],
    )
    out = tmp_path / "out.jsonl"
    command = ("judge", str(samples), "--problems", str(problems), "--out", str(out))
    programs = Programs(tmp_path)
    killed = programs.fork(*command, "--workers", "2")
    end = time.monotonic() + 30
    while time.monotonic() < end and (not out.exists() or out.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    killed.kill()
    killed.reap(10.0)
    assert killed.left_behind(10.0) == []
    before = out.read_bytes()
    lines = before.count(b"\n")
    assert 5 <= lines < 40
    with out.open("ab") as file:
        file.write(b'{"task_id": "Mbpp/1", "sa')  # as if the kill had torn a line
    again = programs.fork(*command, "--workers", "2")
    assert again.wait() == 0, again.said
    assert f"{lines} of 40 had been judged before" in again.said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter(row["sample"] for row in rows) == Counter(range(40))
    assert set(before.splitlines()) <= set(out.read_bytes().splitlines()), (
        "a verdict that was there has changed"
    )
