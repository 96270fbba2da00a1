"""``wmtp data prepare --sources`` as it is typed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.corpus.pipeline.corpora import hashes, prose, write_corpus
from wmtp import cli
from wmtp.corpus.settings import load_corpus_settings
from wmtp.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "recipes" / "sources" / "korean.yaml"


def run(*arguments: object) -> None:
    cli.app(["data", "prepare", *(str(a) for a in arguments)], standalone_mode=False)


def test_a_corpus_is_prepared_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--sources", write_corpus(tmp_path, 20), "--out", tmp_path / "out", "--workers", 1)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == str(tmp_path / "out")
    assert lines[1].startswith("92 of 97 documents kept")
    assert "bad records: no text at text 1, not JSON 1" in lines
    assert "looking for duplicates among 94 documents" in told.err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ([], "one of them"),
        (["--source", "a", "--sources", "b"], "one of them"),
        (["--sources", "b", "--tokenizer", "t"], "--tokenizer belongs to --source"),
        (["--sources", "b", "--split", "train"], "--split belongs to --source"),
        (["--source", "a"], "--tokenizer is missing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, typed: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run(*typed, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fromat": "x"}, "sources.0.fromat: no such key. Did you mean format?"),
        ({"format": "jsonlines"}, "sources.0.format is 'jsonlines'. Did you mean jsonl?"),
        ({"column": "a"}, "sources.0.column: no such key."),
        ({"delimiter": ";"}, "delimiter is not for format jsonl, which has text, join"),
        ({"license": ""}, "license is missing"),
        ({"name": "a/b"}, "use letters, digits"),
        ({"paths": []}, "sources.0.paths has 0 usable values; at least 1 needed"),
        ({"format": "json"}, "text or layout is needed, one of them"),
        ({"format": "csv", "header": False, "text": "A"}, "without header it is the number"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    good = {"name": "a", "paths": ["x"], "format": "jsonl", "license": "CC0-1.0"}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"sources": [good]}))
    load_corpus_settings(path)
    path.write_text(yaml.safe_dump({"sources": [good | change]}))
    with pytest.raises(ConfigError) as refused:
        load_corpus_settings(path)
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"{path}:")


def test_stages_are_set_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    source = {"name": "a", "paths": ["x"], "format": "nikl", "license": "NIKL"}
    for stages, told in (
        ({"shape": {"min_leters": 3}}, "stages.shape.min_leters: no such key. Did you mean"),
        ({"shap": {}}, "stages.shap: no such key. Did you mean shape?"),
        ({"language": {"plain_share": 2}}, "stages.language.plain_share is 2"),
    ):
        path.write_text(yaml.safe_dump({"sources": [source], "stages": stages}))
        with pytest.raises(ConfigError, match=told):
            load_corpus_settings(path)


def test_the_shipped_list_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMTP_DATA", "data")
    settings = load_corpus_settings(SHIPPED)
    assert {source.format for source in settings.sources} >= {"wikipedia", "namuwiki", "nikl"}
    assert all(source.effective_license for source in settings.sources)


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": prose(i)}) + "\n" for i in range(3_000))
    (tmp_path / "a.jsonl").write_text(rows)
    source = {"name": "a", "paths": ["a.jsonl"], "format": "jsonl", "license": "CC0-1.0"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    typed = [
        sys.executable,
        "-m",
        "wmtp",
        "data",
        "prepare",
        "--sources",
        "s.yaml",
        "--workers",
        "1",
    ]
    running = subprocess.Popen(
        [*typed, "--out", "out"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "out" / "work" / "units").is_dir():
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=120)
    assert (running.returncode, "the same command goes on from here" in told) == (130, True), told
    for out in ("out", "other"):
        subprocess.run([*typed, "--out", out], cwd=tmp_path, check=True, capture_output=True)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")
