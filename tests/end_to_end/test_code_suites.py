"""A model writes programs, the judge runs them, and an interrupted evaluation goes on."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.processes.programs import Programs
from wmtp.errors import ConfigError
from wmtp.evaluation.continuations import Sample

from .conftest import World

FULL = os.environ.get("WMTP_JUDGE_CHECK") == "full"
PROBLEMS = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(a):\r\n    return a + {number}",
        "test_list": [f"assert add(1) == {number + 1}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number in (11, 12, 13, 601)
]


@pytest.fixture
def trained(world: World) -> Path:
    world.recipe["train"] = {"max_steps": 2, "eval_interval": 2}
    world.recipe["model"]["max_seq_length"] = 128
    world.train("run")
    (world.folder / "mbpp.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PROBLEMS))
    return world.runs / "run" / "final"


def evaluated(world: World, model: Path, *more: str) -> Any:
    out = world.folder / "out"
    files = ["--model", str(model), "--problems", str(world.folder / "mbpp.jsonl")]
    world.run("evaluate", *files, "--suite", "mbpp", "--out", str(out), *more)
    return json.loads((out / "evaluation.json").read_text())["mbpp"]


def test_programs_are_written_and_judged_once(
    world: World, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows one answer by heart, interrupted before the last problem."""
    asked: list[str] = []

    def by_heart(*arguments: Any) -> Any:
        prompts, wanted = arguments[3], arguments[4]
        for prompt in prompts:
            asked.append(prompt.task_id)
            for index in range(wanted.samples):
                right = "def add(a):\n    return a + 11\n" if index else "def add(a): pass"
                yield Sample(prompt.task_id, index, right, 5, "stop")
            if len(asked) == 2:
                raise RuntimeError("stopped")

    monkeypatch.setattr("wmtp.evaluation.code_suites.write_samples", by_heart)
    options = ["--samples", "2", "--temperature", "1"]
    with pytest.raises(RuntimeError, match="stopped"):
        evaluated(world, trained, *options)
    found = evaluated(world, trained, *options)
    assert asked == ["Mbpp/11", "Mbpp/12", "Mbpp/13"]  # of the split test alone
    assert [(row["task_id"], row["n"], row["c"]) for row in found["problems"]] == [
        ("Mbpp/11", 2, 1), ("Mbpp/12", 2, 0), ("Mbpp/13", 2, 0),
    ]  # fmt: skip
    assert found["pass@1"] == pytest.approx(1 / 6)
    assert "pass@10" not in found
    assert found["verdicts"] == {"passed": 1, "failed": 5}
    assert found["exact_match"] == pytest.approx(1 / 6)
    assert found["exact_match_ast"] == pytest.approx(1 / 6)
    assert (found["compiled"], found["repeated"]) == (1.0, 0)
    assert found["format"]["template"].startswith('"""\n{description}\n{tests}')
    assert found["isolation"] != "none"
    before = (world.folder / "out" / "mbpp_results.jsonl").read_bytes()
    assert evaluated(world, trained, *options) == found
    assert (world.folder / "out" / "mbpp_results.jsonl").read_bytes() == before


def test_a_real_model_writes_real_programs(
    world: World, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are wrong, and every one is kept; the figures reach the run's metrics."""
    found = evaluated(world, trained, "--max-new-tokens", "12")
    assert found["pass@1"] == 0
    assert found["pass@1_interval"][1] > 0.3
    assert sum(found["verdicts"].values()) == 3
    texts = (world.folder / "out" / "mbpp_texts.jsonl").read_text().splitlines()
    assert len(texts) == 4
    rows = (world.runs / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["evaluation/mbpp/pass_at_1"] == 0
    assert "wmtp sync" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="pass@1|needs --out"):
        world.run("evaluate", "--model", str(trained), "--suite", "mbpp")


@pytest.mark.skipif(not FULL, reason="make judge-check")
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_nothing_is_written_or_judged_twice(
    world: World, trained: Path, seed: int
) -> None:
    """While the model is loaded, writes texts, and while they are judged."""
    chance = random.Random(seed)
    rows = [{**PROBLEMS[0], "task_id": number} for number in range(11, 31)]
    (world.folder / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = world.folder / "out"
    given = ["--model", trained, "--problems", world.folder / "mbpp.jsonl", "--suite", "mbpp",
             "--out", out, "--samples", 2, "--temperature", 1, "--max-new-tokens", 4]  # fmt: skip
    files = [out / "mbpp_texts.jsonl", out / "mbpp_results.jsonl"]
    kept: list[list[bytes]] = [[], []]
    programs = Programs(world.folder)
    kills = 0
    for _ in range(40):
        evaluation = programs.fork("evaluate", *map(str, given))
        code = evaluation.reap(chance.uniform(0.05, 0.25 * (1 + kills)))
        if code is None:
            kills += 1
            evaluation.kill()
            evaluation.reap(10.0)
        assert evaluation.left_behind(10.0) == []
        for place, path in enumerate(files):
            found = path.read_bytes() if path.exists() else b""
            whole = found[: found.rfind(b"\n") + 1].splitlines()
            assert set(kept[place]) <= set(whole), f"a line of {path.name} has changed"
            kept[place] = whole
        if code is not None:
            break
    assert code == 0, evaluation.said
    assert kills, "it was never killed"
    texts, verdicts = ([json.loads(line) for line in lines] for lines in kept)
    written = Counter((row["task_id"], row["index"]) for row in texts if "index" in row)
    assert set(written.values()) == {1}
    assert len(written) == 40
    assert Counter(row["sample"] for row in verdicts) == Counter(range(40))


def test_another_prompt_is_another_evaluation(world: World, trained: Path) -> None:
    evaluated(world, trained, "--max-new-tokens", "4")
    form = world.folder / "form.yaml"
    form.write_text("template: '# {description} is wanted'\nstop: ['#']\n")
    with pytest.raises(Exception, match="samples of another model or of other settings"):
        evaluated(world, trained, "--max-new-tokens", "4", "--prompt-format", str(form))
    form.write_text("template: no place for it\n")
    with pytest.raises(ConfigError, match=r"template must be a text with \{description\} in it"):
        evaluated(world, trained, "--prompt-format", str(form))
