"""What the data commands tell besides their results."""

import json
from pathlib import Path

import numpy as np
import pytest

from wmtp import cli
from wmtp.data.shards import open_shards
from wmtp.errors import DataError

DATASETS = Path(__file__).parents[2] / "datasets"
LEFT_OUT = "1 left out: not JSON 1\n  {path}:2: not JSON (Expecting property name"


def run(*arguments: object) -> None:
    cli.app([str(a) for a in arguments], standalone_mode=False)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "one fox"}\n{\n{"text": "two foxes"}\n')
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n" * 9)
    run("tokenizer", "train", "--source", text, "--out", tmp_path / "tok", "--vocab-size", 280)
    return tmp_path / "tok"


def test_training_a_tokenizer_tells_what_was_left_out(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("tokenizer", "train", "--source", lines, "--out", tmp_path / "t", "--vocab-size", 260)
    told = capsys.readouterr()
    assert told.err.startswith(LEFT_OUT.format(path=lines))
    assert told.out.startswith(f"{tmp_path / 't'}: 260 tokens")


def test_describing_tokenizers_tells_it_once(
    lines: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    both = ("--tokenizer", tokenizer, "--tokenizer", tokenizer)
    run("tokenizer", "describe", *both, "--source", lines)
    told = capsys.readouterr()
    assert told.err.count("left out") == 1
    assert told.out.count("texts: 2,") == 2


def test_reading_long_tells_how_far_it_has_come(
    lines: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    now_and_then = cli.data._now_and_then
    monkeypatch.setattr(cli.data, "_now_and_then", lambda: now_and_then(seconds=0.0))
    run("tokenizer", "train", "--source", lines, "--out", tmp_path / "t", "--vocab-size", 260)
    assert "2 texts, 16 characters so far\n" in capsys.readouterr().err
    run("data", "prepare", "--source", lines, "--tokenizer", tokenizer, "--out", tmp_path / "s")
    told = capsys.readouterr()
    assert "2 documents, " in told.err
    assert "1 left out: not JSON 1" in told.out


def test_contest_programs_are_prepared_with_their_rewards(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contest = ("--source", DATASETS / "contest_small.jsonl", "--tokenizer", tokenizer)
    run("data", "prepare", *contest, "--solutions", "all", "--out", tmp_path / "all")
    shards = open_shards(tmp_path / "all")
    assert shards.rewards is not None
    assert np.bincount(shards.rewards.astype(int)).tolist() == [41, 40]
    run("data", "prepare", *contest, "--out", tmp_path / "correct")
    assert open_shards(tmp_path / "correct").rewards is None
    assert "40 documents" in capsys.readouterr().out
    with pytest.raises(DataError, match="solutions is 'some'. Use correct, all"):
        run("data", "prepare", *contest, "--solutions", "some", "--out", tmp_path / "some")


def test_manifest_names_what_was_passed_over(tokenizer: Path, tmp_path: Path) -> None:
    row = {"name": "p", "description": "d", "solutions": ["a", "a"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    run("data", "prepare", "--source", tmp_path / "c.jsonl", "--tokenizer", tokenizer,
        "--out", tmp_path / "s")  # fmt: skip
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert manifest["sources"][0]["passed_over"] == {"duplicate program": 1}


def test_a_tokenizer_is_trained_on_a_sample_and_says_on_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.jsonl"
    rows = [{"text": f"{n} 번째 문장", "source": "large" if n % 4 else "small"} for n in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ("tokenizer", "train", "--source", path, "--vocab-size", 270, "--sample-bytes", 2500)
    run(*train, "--out", tmp_path / "one", "--trainer", "rustbpe")
    run(*train, "--out", tmp_path / "two", "--trainer", "rustbpe")
    about = json.loads((tmp_path / "one/training.json").read_text())
    assert about == json.loads((tmp_path / "two/training.json").read_text())
    sampled = {share["name"]: share["sampled_bytes"] for share in about["sources"]}
    assert all(abs(sampled[name] - 1250) < 40 for name in ("large", "small"))
    assert "learned by rustbpe" in capsys.readouterr().out
    run("tokenizer", "describe", "--tokenizer", tmp_path / "one", "--source", path, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["all"]["lossless"] == 400
    assert set(found["sources"]) == {"large", "small"}
