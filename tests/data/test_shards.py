import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp.data.encoding import EncodedDocument
from wmtp.data.shard_writer import write_shards
from wmtp.data.shards import add_column, add_document_column, is_shards, open_shards
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.errors import DataError, StorageError

DOCUMENTS = [[0, 5, 6, 0], [0, 7, 0]]


def test_what_is_written_is_read(make_shards: Any, tokenizer: TextTokenizer) -> None:
    shards = make_shards(DOCUMENTS)
    assert shards.tokens.tolist() == [0, 5, 6, 0, 0, 7, 0]
    assert shards.tokens.dtype == np.uint16
    assert shards.ends.tolist() == [4, 7]
    assert shards.document_names(1, 1) == ("file:2",)
    assert shards.wanted is None
    assert shards.loss_weights is None
    assert open_shards(shards.path, tokenizer.fingerprint).manifest == shards.manifest
    assert TextTokenizer.load(shards.path).fingerprint == tokenizer.fingerprint
    shards.verify()


def test_columns_come_back(make_shards: Any) -> None:
    shards = make_shards(
        DOCUMENTS,
        wanted=[[True, False, True, True], [True] * 3],
        weights=[[1, 2, 0.5, 1], [1, 1, 3]],
    )
    assert shards.wanted.values.tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert shards.loss_weights.values.tolist() == [1, 2, 0.5, 1, 1, 1, 3]


def test_big_vocabulary_takes_four_bytes(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    big = TextTokenizer(tokenizer._model, 0, tokenizer._files)
    big.vocab_size = 65537
    ids = np.array([0, 65536])
    with write_shards(tmp_path / "s", big) as writer:
        writer.add(EncodedDocument("f", ids, np.ones(2, dtype=bool), None))
    shards = open_shards(tmp_path / "s")
    assert shards.tokens.tolist() == [0, 65536]
    assert shards.tokens.dtype == np.uint32


def test_foreign_tokenizer_is_refused(make_shards: Any) -> None:
    other = train_tokenizer(["something else"], 300)
    with pytest.raises(DataError, match="made with another tokenizer"):
        open_shards(make_shards(DOCUMENTS).path, other.fingerprint)


@pytest.mark.parametrize("name", ["tokens.bin", "docs.idx", "wanted.u8", "loss_weights.f16"])
def test_truncation_is_refused(make_shards: Any, name: str) -> None:
    path = make_shards(
        DOCUMENTS, wanted=[[True, False, True, True], [True] * 3], weights=[[1] * 4, [1] * 3]
    ).path
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"damaged: {name} has {len(content) - 1} bytes instead of"):
        open_shards(path)
    (path / name).unlink()
    with pytest.raises(DataError, match="damaged"):
        open_shards(path)


@pytest.mark.parametrize("ends", [[7, 7], [0, 7], [4, 6], [-1, 7]])
def test_ends_that_do_not_divide_the_tokens_are_refused(make_shards: Any, ends: list[int]) -> None:
    path = make_shards(DOCUMENTS).path
    np.array(ends, dtype="<i8").tofile(path / "docs.idx")
    with pytest.raises(DataError, match=r"docs.idx does not divide the 7 tokens"):
        open_shards(path)


def test_changed_token_is_found_by_verifying(make_shards: Any) -> None:
    path = make_shards(DOCUMENTS).path
    content = bytearray((path / "tokens.bin").read_bytes())
    content[2] ^= 1
    (path / "tokens.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"tokens.bin is not what was written"):
        open_shards(path).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "of version 2, and this program reads version 1"),
        ({"tokens": "7"}, "manifest.json tokens: Input should be a valid integer"),
        ({"tokens": 0}, "manifest.json tokens"),
        ({"columns": ["../secret"]}, "manifest.json columns"),
        ({"dtype": "object"}, "manifest.json dtype"),
        ({"format": "parquet"}, "manifest.json format"),
    ],
)
def test_manifest_is_checked(make_shards: Any, change: dict[str, Any], message: str) -> None:
    path = make_shards(DOCUMENTS).path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DataError, match=message):
        open_shards(path)


def test_folder_without_manifest_is_no_shards(tmp_path: Path) -> None:
    assert not is_shards(tmp_path)
    with pytest.raises(DataError, match="not a folder of shards"):
        open_shards(tmp_path)


def test_interrupted_writing_leaves_nothing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    def interrupted() -> None:
        with write_shards(tmp_path / "s", tokenizer) as writer:
            writer.add(EncodedDocument("f", np.array([0, 1]), np.ones(2, dtype=bool), None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten(make_shards: Any, tokenizer: TextTokenizer) -> None:
    path = make_shards(DOCUMENTS).path
    with pytest.raises(DataError, match="exists already"), write_shards(path, tokenizer):
        pass
    assert open_shards(path).manifest.tokens == 7


def test_unwritable_place_is_a_storage_error(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="could not be written"),
        write_shards(tmp_path / "file" / "s", tokenizer),
    ):
        pass


def test_column_is_added_whole_or_not_at_all(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    chunks = [np.arange(4.0), np.arange(3.0)]
    assert shards.column("ref_ce.x") is None
    column = add_column(shards, "ref_ce.x", "f16", iter(chunks))
    assert column.values.tolist() == [0, 1, 2, 3, 0, 1, 2]
    before = sorted(path.name for path in shards.path.iterdir())
    for wrong in (chunks[:1], [*chunks, np.ones(1)]):
        with pytest.raises(ValueError, match="values for 7 tokens"):
            add_column(shards, "ref_ce.y", "f16", iter(wrong))
    assert sorted(path.name for path in shards.path.iterdir()) == before


def test_damaged_added_column_is_refused(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    add_column(shards, "ref_ce.x", "f16", [np.zeros(7)])
    (shards.path / "ref_ce.x.f16").write_bytes(b"123")
    with pytest.raises(DataError, match=r"ref_ce\.x\.f16 has 3 bytes instead of 14"):
        shards.column("ref_ce.x")


def test_copy_for_another_process_maps_the_files_again(make_shards: Any) -> None:
    shards = make_shards([[0, *[5] * 10_000, 0]])
    column = add_column(shards, "ref_ce.x", "f16", [np.ones(10_002)])
    content = pickle.dumps((shards, column))
    assert len(content) < 2000
    copy, copied_column = pickle.loads(content)
    assert copy.tokens[5] == 5
    assert copied_column.values[5] == 1


def test_shards_can_be_moved(make_shards: Any, tmp_path: Path) -> None:
    shutil.move(make_shards(DOCUMENTS).path, tmp_path / "elsewhere")
    open_shards(tmp_path / "elsewhere").verify()


def test_rewards_and_groups_are_kept_per_document(make_shards: Any) -> None:
    shards = make_shards(
        [[0, 1], [0, 2], [0, 3], [0, 4]],
        rewards=[1.0, None, -0.25, None],
        groups=["b", "a", "b", None],
    )
    assert shards.rewards is not None
    assert shards.groups is not None
    assert shards.rewards.dtype == np.float32
    np.testing.assert_array_equal(shards.rewards, [1.0, np.nan, -0.25, np.nan])
    assert shards.groups.dtype == np.int32
    assert shards.groups.tolist() == [0, 1, 0, -1]
    assert shards.manifest.document_columns == ["rewards", "groups"]
    with pytest.raises(ValueError, match="read-only"):
        shards.rewards[0] = 0


def test_document_columns_that_say_nothing_are_dropped(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    assert (shards.rewards, shards.groups) == (None, None)
    assert not list(shards.path.glob("rewards*"))
    assert not list(shards.path.glob("groups*"))
    only_rewards = make_shards(DOCUMENTS, rewards=[None, 0.0], name="rewards")
    assert only_rewards.rewards is not None
    assert only_rewards.groups is None


def test_shards_from_before_document_columns_open(make_shards: Any) -> None:
    path = make_shards(DOCUMENTS).path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["document_columns"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    shards = open_shards(path)
    assert (shards.rewards, shards.groups) == (None, None)


@pytest.mark.parametrize("name", ["rewards.f32", "groups.i32"])
def test_truncated_document_columns_are_refused(make_shards: Any, name: str) -> None:
    path = make_shards(DOCUMENTS, rewards=[1, 0], groups=["a", "a"]).path
    (path / name).write_bytes(b"1234")
    with pytest.raises(DataError, match=f"{name} has 4 bytes instead of 8"):
        open_shards(path)
    (path / name).unlink()
    with pytest.raises(DataError, match=rf"column {name[:-4]} is missing"):
        open_shards(path)


def test_document_column_is_added_whole_or_not_at_all(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    assert shards.document_column("reward.x") is None
    added = add_document_column(shards, "reward.x", np.array([0.5, np.nan]))
    assert added.dtype == np.float32
    np.testing.assert_array_equal(shards.document_column("reward.x"), [0.5, np.nan])
    assert add_document_column(shards, "pair.x", np.array([1, 0])).dtype == np.int32
    before = sorted(path.name for path in shards.path.iterdir())
    with pytest.raises(ValueError, match="column reward.y: 3 values for 2 documents"):
        add_document_column(shards, "reward.y", np.zeros(3))
    assert sorted(path.name for path in shards.path.iterdir()) == before
    (shards.path / "reward.x.f32").write_bytes(b"123")
    with pytest.raises(DataError, match=r"reward\.x\.f32 has 3 bytes instead of 8"):
        shards.document_column("reward.x")


def test_copy_for_another_process_maps_rewards_again(make_shards: Any) -> None:
    shards = make_shards([[0, 1]] * 2000, rewards=[0.5] * 2000, groups=["g"] * 2000)
    content = pickle.dumps(shards)
    assert len(content) < 2000
    copy = pickle.loads(content)
    assert copy.rewards[1999] == 0.5
    assert copy.groups[1999] == 0
