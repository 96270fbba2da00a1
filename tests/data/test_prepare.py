import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp.data.inspect import describe_shards
from wmtp.data.prepare import prepare, prepare_cached
from wmtp.data.shards import add_document_column, open_shards
from wmtp.data.sources import Source, make_source
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError


def test_report_and_manifest_count_everything(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_lines([{"text": "add fox"}, b"{", {"prompt": "한", "completion": "b"}])
    report = prepare([Source(str(path))], tokenizer, tmp_path / "out")
    shards = open_shards(tmp_path / "out", tokenizer.fingerprint)
    shards.verify()
    assert (report.documents, report.tokens) == (2, shards.manifest.tokens)
    assert report.text_bytes == 7 + 3 + 1
    assert report.bad_lines == {"not JSON": 1}
    assert report.lines()[1] == "1 left out: not JSON 1"
    (count,) = shards.manifest.sources
    assert (count.format, count.documents, count.bad_lines) == ("jsonl", 2, {"not JSON": 1})
    (bad,) = (tmp_path / "out/bad_lines.jsonl").read_text().splitlines()
    assert json.loads(bad)["place"] == f"{path}:2"


def test_prompt_tokens_are_not_wanted(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_lines([{"prompt": "xy", "completion": "z"}])
    prepare([Source(str(path))], tokenizer, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert shards.wanted is not None
    assert shards.wanted.values.tolist() == [1, 0, 0, 1, 1]


def test_weights_of_one_line_give_a_column_for_all(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_lines([{"text": "xy"}, {"text": "z", "loss_weights": 2}])
    prepare([Source(str(path))], tokenizer, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert shards.loss_weights is not None
    assert shards.loss_weights.values.tolist() == [1, 1, 1, 1, 2, 2, 2]


def test_same_sources_give_the_same_bytes(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_lines([{"text": f"line {n}"} for n in range(50)])
    for out in ("a", "b"):
        prepare([Source(str(path))], tokenizer, tmp_path / out)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_refused_source_leaves_no_folder(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_lines([b"{", b"{", {"text": "a"}])
    with pytest.raises(DataError, match="2 of 3 lines"):
        prepare([Source(str(path))], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ids = write_lines([{"tokens": [10**6]}] * 2 + [{"tokens": [1]}])
    with pytest.raises(DataError, match="cannot be used with this tokenizer"):
        prepare([Source(str(ids))], tokenizer, tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if p != path]


def test_progress_is_told(write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    seen: list[tuple[int, int]] = []
    path = write_lines([{"text": "ab"}])
    prepare([Source(str(path))], tokenizer, tmp_path / "out", lambda *done: seen.append(done))
    assert seen == [(1, 4)]


def test_cache_is_used_until_a_file_changes(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    lines: list[str] = []
    path = write_lines([{"text": "one"}])
    cache = tmp_path / "cache"
    first = prepare_cached([Source(str(path))], tokenizer, cache, lines.append)
    again = prepare_cached([Source(str(path))], tokenizer, cache, lines.append)
    assert first.path == again.path
    assert lines[0] == f"tokenizing {path}"
    assert lines[1].startswith(f"{path}: 1 documents, ")  # the source, not a folder of the cache
    assert len(lines) == 2
    write_lines([{"text": "two"}])  # the same length, within the clock's resolution
    changed = prepare_cached([Source(str(path))], tokenizer, cache)
    assert changed.path != first.path
    assert changed.tokens.tolist() != first.tokens.tolist()


def test_cache_knows_split_and_tokenizer(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {n}\n" for n in range(40)))
    tokenizer.save(tmp_path / "other")
    (tmp_path / "other/tokenizer_config.json").write_text('{"eos_token": "a"}')
    other = TextTokenizer.load(tmp_path / "other")  # ends documents with another token
    folders = {
        prepare_cached([make_source(str(path), split, "auto")], some, tmp_path / "cache").path
        for split in ("all", "train", "validation")
        for some in (tokenizer, other)
    }
    assert len(folders) == 6


def test_shards_are_used_as_they_are(make_shards: Any, tokenizer: TextTokenizer) -> None:
    path = make_shards([[0, 5, 0]]).path
    source = Source(str(path))
    assert prepare_cached([source], tokenizer, path / "unused").path == path
    with pytest.raises(DataError, match="must be the only source"):
        prepare_cached([source, source], tokenizer, path / "unused")
    with pytest.raises(DataError, match="no split and no format"):
        prepare_cached([Source(str(path), "train")], tokenizer, path / "unused")
    with pytest.raises(DataError, match="folder of shards already"):
        prepare([source], tokenizer, path / "unused")
    assert not (path / "unused").exists()


def test_description_shows_counts_columns_and_text(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    rows = [{"prompt": "add", "completion": " fox", "loss_weights": 2}, {"text": "b" * 50}]
    path = write_lines(rows)
    prepare([Source(str(path))], tokenizer, tmp_path / "out")
    text = "\n".join(describe_shards(tmp_path / "out", documents=2, characters=40))
    assert "2 documents" in text
    assert "loss_weights: 1 to 2" in text
    assert "'<|endoftext|>add fox<|endoftext|>'" in text
    assert f"document {path}:2: 52 tokens" in text
    assert "b'..." in text


def test_real_mbpp_masks_its_prompts(
    real_data: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    source = make_source(str(real_data / "code/mbpp.jsonl"), "prompt", "auto")
    shards = prepare_cached([source], tokenizer, tmp_path)
    assert shards.manifest.documents == 10
    assert shards.wanted is not None
    first = slice(0, int(shards.ends[0]))
    ids, wanted = shards.tokens[first], shards.wanted.values[first].astype(bool)
    assert tokenizer.decode(ids[~wanted].tolist()).startswith('"""\nWrite a function to find the')
    assert tokenizer.decode(ids[wanted].tolist()).startswith("R = 3\nC = 3\ndef min_cost")


def test_rewards_reach_the_shards_and_the_description(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_lines(
        [
            {"text": "ab", "is_correct": True, "group": "sum"},
            {"tokens": [5, 6], "reward": 0.5, "group": "max"},
            {"text": "abc", "loss_weights": [[0, 1, 2]], "is_correct": False, "group": "sum"},
            {"text": "plain"},
        ]
    )
    prepare([Source(str(path))], tokenizer, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    np.testing.assert_array_equal(shards.rewards, [1, 0.5, 0, np.nan])
    assert shards.groups is not None
    assert shards.groups.tolist() == [0, 1, 0, -1]
    add_document_column(shards, "reward.model", np.array([np.nan, np.nan, 2.0, 4.0]))
    text = "\n".join(describe_shards(tmp_path / "out", documents=0, characters=1))
    assert "rewards: 3 of 4 documents, mean 0.5" in text
    assert "groups: 2, with 3 of 4 documents" in text
    assert "reward.model: 2 of 4 documents, mean 3" in text


def test_contest_reaches_the_shards_with_what_was_passed_over(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    problem = {"name": "p", "description": "d", "solutions": ["a", "a", "b"]}
    path = write_lines([{**problem, "incorrect_solutions": ["c"]}])
    report = prepare([Source(str(path), solutions="all")], tokenizer, tmp_path / "out")
    assert report.passed_over == {"duplicate program": 1}
    assert report.lines()[1:] == ["1 passed over: duplicate program 1"]
    shards = open_shards(tmp_path / "out")
    assert shards.rewards is not None
    assert shards.rewards.tolist() == [1, 1, 0]
    (count,) = shards.manifest.sources
    assert (count.format, count.passed_over) == ("contest", {"duplicate program": 1})
    assert "  passed over, duplicate program: 1" in describe_shards(tmp_path / "out", 0, 1)
    cached = [
        prepare_cached([Source(str(path), solutions=solutions)], tokenizer, tmp_path / "cache")
        for solutions in ("correct", "all")
    ]
    assert [shards.manifest.documents for shards in cached] == [2, 3]


def test_any_number_of_workers_gives_the_same_bytes(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [
        {"text": f"문서 {n} 한국어 <|endoftext|>", "source": "web" if n % 3 else "news"}
        for n in range(60)
    ]
    rows[10], rows[30], rows[31] = b"{", {"tokens": [10**6]}, {"prompt": "a", "completion": "b"}
    rows[50] = {"text": "x", "loss_weights": 2, "reward": 1, "group": "g"}
    path = write_lines(rows)
    monkeypatch.setattr("wmtp.data.prepare._BATCH_CHARS", 100)
    for workers in (1, 2):
        prepare([Source(str(path))], tokenizer, tmp_path / str(workers), workers=workers)
    files = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    lines = (tmp_path / "1/bad_lines.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["place"] for line in lines]
    assert reasons == [f"{path}:11", f"{path}:31"]


def test_licenses_and_origins_are_counted(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiki = {"source": "kowiki", "license": "CC-BY-SA-4.0"}
    path = write_lines(
        [{"text": "가나", **wiki}, {"text": "다", **wiki}, {"text": "ab", "license": "CC0"},
         {"text": "c", "source": 3, "license": ""}]
    )  # fmt: skip
    prepare([Source(str(path))], tokenizer, tmp_path / "out")
    (count,) = open_shards(tmp_path / "out").manifest.sources
    found = [(o.source, o.license, o.documents, o.text_bytes) for o in count.origins]
    assert found == [
        (None, None, 1, 1), (None, "CC0", 1, 2), ("kowiki", "CC-BY-SA-4.0", 2, 9),
    ]  # fmt: skip
    assert sum(o.tokens for o in count.origins) == count.tokens
    assert count.text_bytes == 12
    lines = describe_shards(tmp_path / "out", 0, 1)
    assert any(line.startswith("  kowiki (CC-BY-SA-4.0): 2 documents, ") for line in lines)
    monkeypatch.setattr("wmtp.data.prepare._MOST_ORIGINS", 1)
    prepare([Source(str(path))], tokenizer, tmp_path / "few")
    (count,) = open_shards(tmp_path / "few").manifest.sources
    assert [o.source for o in count.origins] == ["(others)", "kowiki"]
    plain = write_lines([{"text": "a"}])
    prepare([Source(str(plain))], tokenizer, tmp_path / "plain")
    assert open_shards(tmp_path / "plain").manifest.sources[0].origins == []


def test_without_a_fast_encoder_the_shards_are_the_same_and_it_is_said(
    write_lines: Any, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines([{"text": f"문서 {n} ab"} for n in range(20)])
    fast = prepare([Source(str(path))], tokenizer, tmp_path / "fast")
    monkeypatch.setattr("wmtp.data.fast_encoding.find_spec", lambda name: None)
    slow = prepare([Source(str(path))], tokenizer, tmp_path / "slow")
    assert "tiktoken is not installed" in slow.notes[-1]
    assert fast.notes == ()
    for file in (tmp_path / "fast").iterdir():
        assert file.read_bytes() == (tmp_path / "slow" / file.name).read_bytes()
