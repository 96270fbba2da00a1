"""``wmtp lm-eval`` with the real lm-evaluation-harness: make lm-eval-check installs it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wmtp
from tests.model_directories import write_model, write_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="make lm-eval-check installs it"
)
TASKS = Path(__file__).with_name("tasks")
DATA = Path(os.environ.get("WMTP_DATA") or "absent") / "code"
ALL = ("toy_choice", "toy_rolling", "toy_writing")
ROWS = [
    {"text": "def double(x):\n    return 2 * x\n", "choices": ["    return x", "    return 2"]},
    {"text": "for word in text.split():\n    print(word)\n", "choices": ["pass", "print"]},
    {"text": "The tree has seven green leaves.", "choices": [" One fell.", " It is a tree."]},
    {"text": "a = [1, 2, 3]; b = sorted(a)", "choices": ["; c = b", "; print(a, b)"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer puts nothing before a text: ``hf`` would count that as a token of the text."""
    folder = write_model(tmp_path_factory.mktemp("toy") / "model")
    write_tokenizer(folder, with_front=False)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks with the place of their data written into them."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "toy.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for path in TASKS.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text().replace("toy.jsonl", str(data)))
    return folder


def harness(out: Path, *arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(wmtp.__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(out.parent / "hf"),
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "wmtp", "lm-eval", "--device", "cpu", "--output_path", out),
            *("--log_samples", *map(str, arguments)),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def figures(out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[Any]]]:
    """Results by task, and by task what each document got."""
    (path,) = out.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    samples = {}
    for one in out.rglob("samples_*.jsonl"):
        task = re.sub(r"^samples_|_\d{4}-.*$", "", one.stem)
        rows = [json.loads(line) for line in one.read_text().splitlines()]
        samples[task] = [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return results, samples


def test_figures_are_those_of_its_own_model_class(model: Path, tasks: Path, tmp_path: Path) -> None:
    """The harness's ``--model hf`` runs transformers on the same directory."""
    found = {}
    for kind in ("wmtp", "hf"):
        arguments = f"pretrained={model}" + ("" if kind == "wmtp" else ",dtype=float32")
        given = ["--model", kind, "--model_args", arguments, "--tasks", ",".join(ALL)]
        harness(tmp_path / kind, *given, "--include_path", tasks)
        found[kind] = figures(tmp_path / kind)
    (ours, our_samples), (theirs, their_samples) = found["wmtp"], found["hf"]
    assert set(ours) == set(theirs) == set(ALL)
    for task in ALL:
        numbers = {key for key, value in theirs[task].items() if isinstance(value, float)}
        assert numbers, task
        for key in numbers:
            assert ours[task][key] == pytest.approx(theirs[task][key], rel=1e-4, abs=1e-6), key
        assert len(our_samples[task]) == len(ROWS)
    assert ours["toy_rolling"]["bits_per_byte,none"] > 1, "a toy knows nothing"
    assert our_samples["toy_writing"] == their_samples["toy_writing"]
    for one, other in zip(our_samples["toy_choice"], their_samples["toy_choice"], strict=True):
        for (mine, _), (their, _) in zip(
            (choice[0] for choice in one), (choice[0] for choice in other), strict=True
        ):
            assert float(mine) == pytest.approx(float(their), abs=2e-3)


def test_another_model_has_other_figures(model: Path, tasks: Path, tmp_path: Path) -> None:
    """What the comparison above would notice."""
    write_model(tmp_path / "other", norm_eps=0.1)
    rolling = {}
    for name, folder in (("one", model), ("other", tmp_path / "other")):
        given = ["--model", "wmtp", "--model_args", f"pretrained={folder}", "--tasks"]
        harness(tmp_path / name, *given, "toy_rolling", "--include_path", tasks)
        rolling[name] = figures(tmp_path / name)[0]["toy_rolling"]["bits_per_byte,none"]
    assert rolling["one"] != pytest.approx(rolling["other"], rel=1e-4)


@pytest.mark.skipif(not DATA.is_dir(), reason="WMTP_DATA names no folder with code/")
def test_our_own_task_judges_programs(model: Path, tmp_path: Path) -> None:
    given = ["--model", "wmtp", "--model_args", f"pretrained={model}", "--tasks", "wmtp_mbpp"]
    harness(tmp_path / "out", *given, "--limit", 2, "--gen_kwargs", "max_gen_toks=8")
    results, samples = figures(tmp_path / "out")
    assert results["wmtp_mbpp"]["pass_at_1,none"] == 0, "a toy writes no programs"
    assert len(samples["wmtp_mbpp"]) == 2


def test_an_unknown_argument_is_one_line(model: Path, tasks: Path, tmp_path: Path) -> None:
    given = ["--model", "wmtp", "--model_args", f"pretrained={model},heads=4", "--tasks"]
    done = harness(tmp_path / "out", *given, "toy_rolling", "--include_path", tasks, fails=True)
    assert done.returncode == 2
    assert "--model_args has heads, but wmtp knows pretrained" in done.stderr
    assert "Traceback" not in done.stderr
