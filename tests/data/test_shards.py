import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp.data.encoding import EncodedDocument
from wmtp.data.shard_writer import write_shards
from wmtp.data.shards import add_column, is_shards, open_shards
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
