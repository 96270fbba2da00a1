"""A small corpus of several formats, with all that a pipeline has to find in it."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from tests.corpus.readers.samples import as_csv, as_json, as_parquet, multistream, page
from wmtp.corpus.pipeline import plan, prepare
from wmtp.corpus.settings import load_corpus_settings
from wmtp.runtime.console import Console

ROOT = Path(__file__).parents[3]
NOUNS = ("바람", "하늘", "나무", "바다", "학교", "친구", "여름", "겨울",
         "노래", "사진", "기차", "도시", "시장", "마을", "강물", "편지")  # fmt: skip
VERBS = ("지나갔다", "흔들렸다", "빛났다", "멀어졌다", "돌아왔다", "사라졌다", "모였다", "들려왔다")


def prose(seed: int, sentences: int = 6) -> str:
    """Korean sentences, other ones for every number."""
    said = []
    for i in range(sentences):
        k = seed * 7919 + i * 104_729
        said.append(
            f"{NOUNS[k % 16]}에서 {NOUNS[k // 16 % 16]}까지 {k % 997}번째 "
            f"{NOUNS[k // 256 % 16]}이 {VERBS[k // 11 % 8]}."
        )
    return " ".join(said)


def write_corpus(folder: Path, size: int = 60) -> Path:
    """Raw files, and the list of sources that names them; gives the list."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    pages = [page(i, f"글 {i}", prose(i)) for i in range(size)]
    pages[3] = page(3, "넘", "#넘겨주기 [[글]]", redirect=True)
    (raw / "kowiki.xml.bz2").write_bytes(multistream(pages, 10))
    rows: list[Any] = [{"text": prose(1000 + i)} for i in range(size)]
    rows[5] = {"text": prose(1000)}  # equal to the first
    rows[6] = {"text": prose(1001)[:-6] + "떠났다."}  # nearly the second
    rows[7] = {"text": "짧다"}
    rows[8] = {"text": "This is an English text about nothing at all, and it goes on and on. " * 3}
    rows[9] = {"body": "no text"}
    rows[10] = {"text": prose(1010) + " 문의는 hong@example.com 또는 010-1234-5678."}
    rows[11] = {"text": prose(7777, 20)}  # of the evaluation file
    rows[12] = {"text": prose(1012) + "\r\n\u0000\u1112\u1161\u11ab"}  # changed by normalization
    lines = [as_json(row) for row in rows]
    lines[13] = b"{broken"
    (raw / "web.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (raw / "chat.csv").write_bytes(
        as_csv([["Q", "A"], *(["q", prose(2000 + i)] for i in range(size))])
    )
    (raw / "rows.parquet").write_bytes(as_parquet([prose(3000 + i) for i in range(size)], 16))
    talk = [{"body": {"dialogue": [{"utterance": prose(4000 + i)}]}} for i in range(size)]
    for i in range(5):  # small files, one of them empty, that share units
        (raw / f"talk{i}.json").write_bytes(as_json({"data": talk[i * size // 4 :][: size // 4]}))
    (raw / "evaluation.jsonl").write_bytes(as_json({"question": prose(7777, 20), "answer": "예"}))
    sources = [
        {"name": "wiki", "paths": [f"{raw}/kowiki*.bz2"], "format": "wikipedia"},
        {"name": "web", "paths": [f"{raw}/web.jsonl"], "format": "jsonl", "license": "CC0-1.0"},
        {"name": "chat", "paths": [f"{raw}/chat.csv"], "format": "csv", "text": "A",
         "license": "MIT"},
        {"name": "rows", "paths": [f"{raw}/rows.parquet"], "format": "parquet",
         "license": "CC0-1.0"},
        {"name": "talk", "paths": [f"{raw}/talk*.json"], "format": "json",
         "layout": "dialogue_summary", "license": "AI Hub"},
    ]  # fmt: skip
    return write_sources(
        folder,
        {
            "sources": sources,
            "decontaminate": [f"{raw}/evaluation.jsonl"],
            "validation": {"share": 0.2},
        },
    )


def write_sources(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return path


def prepared(sources: Path, out: Path, workers: int = 1) -> list[str]:
    """In this process."""
    return prepare.prepare_corpus(load_corpus_settings(sources), out, workers, Console())


def drive(folder: Path, sources: Path, out: Path, **more: Any) -> int:
    """In processes that are killed; gives how many were."""
    spec = {"settings": str(sources), "out": str(out), "workers": 1, "seed": 0,
            "unit_bytes": 2_000, **more}  # fmt: skip
    path = folder / f"{out.name}.json"
    path.write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-m", "tests.corpus.pipeline.driver", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def hashes(out: Path) -> dict[str, str]:
    """Of all that is the same whenever it is made: all but speeds, and paths of this machine."""
    return {
        path.relative_to(out).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (prepare.SPEEDS_FILE, prepare.PLAN_FILE, ".lock")
    }


__all__ = ["drive", "hashes", "plan", "prepared", "prose", "write_corpus", "write_sources"]
