"""The same readers and stages as blocks of datatrove, run by its own executor."""

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.writers import JsonlWriter

from wmtp.corpus.blocks import blocks
from wmtp.corpus.settings import load_corpus_settings

from .pipeline.corpora import prepared, write_corpus


def texts(folder: Path, pattern: str) -> set[str]:
    return {
        json.loads(line)["text"]
        for path in folder.glob(pattern)
        for line in gzip.decompress(path.read_bytes()).splitlines()
    }


def test_datatrove_keeps_what_the_pipeline_keeps_but_for_duplicates(tmp_path: Path) -> None:
    sources = write_corpus(tmp_path, 20)
    prepared(sources, tmp_path / "ours")
    pipeline = [*blocks(load_corpus_settings(sources)), JsonlWriter(str(tmp_path / "theirs"))]
    executor = LocalPipelineExecutor(pipeline, tasks=2, logging_dir=str(tmp_path / "logs"))
    executor.run()
    ours = texts(tmp_path / "ours", "*.jsonl.gz")
    theirs = texts(tmp_path / "theirs", "*.jsonl.gz")
    assert len(ours) > 80
    assert len(list((tmp_path / "theirs").glob("*.jsonl.gz"))) == 2  # each task had files
    assert ours < theirs
    assert len(theirs - ours) == 1  # the one that is nearly another; equal ones are one text
    stats = json.loads((tmp_path / "logs" / "stats.json").read_text())
    told = {step["name"]: step["stats"] for step in stats}
    assert told["📖 - READER: web"]["not JSON"] == 1
    assert told["🔻 - FILTER: language"]["foreign_language"] == 1
