from pathlib import Path

import pytest
import torch

from tests.model.toys import toy_model
from tests.model_directories import VOCABULARY, write_model
from wmtp.errors import CheckpointError
from wmtp.export.gguf import export_gguf
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens
from wmtp.verify.gguf_file import check_same_model, read_gguf_file
from wmtp.verify.llama_cpp import verify_llama_cpp


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` and, of it, ``model.gguf``."""
    folder = tmp_path_factory.mktemp("exported")
    write_model(folder / "model", 3, "pre_norm")
    export_gguf(folder / "model", folder / "model.gguf", dtype="q8_0")
    return folder


def refusal(model: Path, file: Path) -> str:
    """What is said before any engine is looked for."""
    with pytest.raises(CheckpointError) as error:
        verify_llama_cpp(model, file, ["a b c"], llama_cpp=file.parent / "no engine")
    said = str(error.value)
    assert "\n" not in said
    return said


def test_what_it_says(exported: Path) -> None:
    file = read_gguf_file(exported / "model.gguf")
    assert (file.architecture, file.dtype, file.has_heads) == ("mimo2", "q8_0", True)
    assert file.shapes["token_embd.weight"] == (VOCABULARY, 32)
    assert file.numbers["mimo2.nextn_predict_layers"] == 2
    check_same_model(file, read_config(exported / "model"), exported / "model")


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99, 0.99999])
def test_a_file_that_is_cut_off_is_refused(share: float, exported: Path, tmp_path: Path) -> None:
    whole = (exported / "model.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: max(8, int(share * len(whole)))])
    assert "is cut off or damaged" in refusal(exported / "model", cut)


def test_what_is_no_gguf_file_is_refused(exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    assert "No such file" in refusal(exported / "model", file)
    file.write_bytes(b"")
    assert "is no GGUF file" in refusal(exported / "model", file)
    file.write_bytes((exported / "model" / "model.safetensors").read_bytes())
    assert "is no GGUF file" in refusal(exported / "model", file)
    file.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)  # 2^64 - 1 tensors
    assert "is cut off or damaged" in refusal(exported / "model", file)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vocab_size": VOCABULARY + 1}, "vocab_size is 320 in the file, 321 in the directory"),
        ({"hidden_size": 64}, "embedding_length is 32 in the file, 64"),
        ({"num_layers": 3}, "block_count is 4 in the file, 5"),
        ({"rope_theta": 5000.0}, "rope.freq_base is 10000.0 in the file, 5000.0"),
        ({"intermediate_size": 64}, "feed_forward_length is 48 in the file, 64"),
        ({"max_seq_length": 128}, "context_length is 64 in the file, 128"),
        ({"horizon": 2}, "block_count is 4 in the file, 3"),
    ],
)
def test_another_models_file_is_refused(
    changes: dict[str, object], what: str, exported: Path, tmp_path: Path
) -> None:
    changes = {"horizon": 3, "hidden": "pre_norm"} | changes
    write_model(tmp_path, **changes)  # type: ignore[arg-type]
    assert what in refusal(tmp_path, exported / "model.gguf")


def test_another_architectures_file_is_refused(exported: Path, tmp_path: Path) -> None:
    write_model(tmp_path, 3, "post_norm", qk_norm=True)
    said = refusal(tmp_path, exported / "model.gguf")
    assert "architecture is mimo2 in the file, hy_v3 in the directory" in said


def test_a_tensor_that_one_of_the_two_lacks_is_named(tmp_path: Path) -> None:
    model = toy_model(1, vocab_size=VOCABULARY)
    save_model(model, tmp_path / "untied", special_tokens=SpecialTokens(0, (0,)))
    tied = toy_model(1, vocab_size=VOCABULARY, tie_embeddings=True)
    save_model(tied, tmp_path / "tied", special_tokens=SpecialTokens(0, (0,)))
    export_gguf(tmp_path / "tied", tmp_path / "tied.gguf", dtype="f32")
    said = refusal(tmp_path / "untied", tmp_path / "tied.gguf")
    assert "output.weight is absent in the file, (320, 32) in the directory" in said


def test_heads_of_a_file_without_them_are_not_asked_for(exported: Path, tmp_path: Path) -> None:
    export_gguf(exported / "model", tmp_path / "m.gguf", dtype="f32", trunk_only=True)
    file = read_gguf_file(tmp_path / "m.gguf")
    assert not file.has_heads
    check_same_model(file, read_config(exported / "model"), exported / "model")


def test_numbers_survive_rounding_the_model_as_the_file(exported: Path, tmp_path: Path) -> None:
    """What is stored is what ``round_model`` leaves in the matrices."""
    import gguf

    from wmtp.verify.rounding import round_model

    model = load_model(exported / "model")
    round_model(model, "q8_0")
    (stored,) = (
        tensor
        for tensor in gguf.GGUFReader(exported / "model.gguf").tensors
        if tensor.name == "token_embd.weight"
    )
    numbers = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
    assert torch.equal(model.trunk.embedding_VD, numbers)
