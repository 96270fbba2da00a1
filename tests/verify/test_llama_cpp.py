"""The real llama.cpp on small exported models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from tests.model.toys import toy_model
from tests.model_directories import VOCABULARY, words, write_model, write_tokenizer
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import CheckpointError, DataError
from wmtp.export import gguf as export
from wmtp.export.gguf import export_gguf
from wmtp.export.gguf_tokenizer import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS, QWEN35_WORDS
from wmtp.model.hf_layout import save_model
from wmtp.model.rotary import Llama3Scaling
from wmtp.model.stored_config import SpecialTokens
from wmtp.verify.check import Check
from wmtp.verify.llama_cpp import acceptance_check, verify_llama_cpp
from wmtp.verify.llama_cpp_engine import Engine
from wmtp.verify.prompts import strings_to_tokenize

PROMPTS = ["def f(x):\n  x = 1", "한글"]
DAMPING = 0.05
SCALING = Llama3Scaling(4.0, 1.0, 4.0, 16)


def verified(
    folder: Path, *, dtype: Any = "f32", trunk_only: bool = False, new_tokens: int = 20
) -> list[Check]:
    out = folder / "model.gguf"
    export_gguf(folder, out, dtype=dtype, trunk_only=trunk_only)
    return verify_llama_cpp(
        folder, out, PROMPTS, new_tokens=new_tokens, texts=["", *strings_to_tokenize(20)]
    )


def check_all(checks: list[Check]) -> None:
    failed = [check for check in checks if not check.passed]
    assert not failed, failed


@pytest.mark.parametrize(
    ("hidden", "changes"),
    [
        ("post_norm", {"qk_norm": True}),
        ("pre_norm", {}),
        ("pre_norm", {"tie_embeddings": True, "rope_theta": 5000.0, "head_dim": 16}),
        ("post_norm", {"final_norm_gain": False}),
        ("pre_norm", {"final_norm_gain": False, "qk_norm": True, "tie_embeddings": True}),
    ],
)
def test_every_depth_is_ours_with_rejections(
    hidden: str, changes: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    write_model(tmp_path, 3, hidden, **changes)
    checks = verified(tmp_path)
    check_all(checks)
    assert [check.name for check in checks] == [
        "texts with other token ids",
        "largest logit difference, trunk",
        "largest logit difference, depth 1",
        "largest logit difference, depth 2",
        "tokens that are not our greedy ones",
        "difference in drafts taken, depth 1",
        "difference in drafts taken, depth 2",
    ]
    assert "0 drafts rejected" not in checks[4].detail
    assert max(check.found for check in checks[1:4]) < 1e-2


def test_three_depths_of_a_plain_llama(engine: Engine, tmp_path: Path) -> None:
    write_model(tmp_path, 4, "pre_norm")
    check_all(verified(tmp_path))


def test_the_third_depth_of_hy_v3_is_not_run_and_told(engine: Engine, tmp_path: Path) -> None:
    write_model(tmp_path, 4, "post_norm", qk_norm=True)
    checks = verified(tmp_path)
    check_all(checks)
    assert "depth 3 is not run" in checks[3].detail


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "head_dim": 16},
        {"rope_scaling": SCALING},
        {"qk_norm": True},
        {"qk_norm": True, "tie_embeddings": True},
    ],
)
def test_trunk_alone_is_ours(changes: dict[str, Any], engine: Engine, tmp_path: Path) -> None:
    write_model(tmp_path, 3, "post_norm", **changes)
    checks = verified(tmp_path, trunk_only=True)
    check_all(checks)
    assert len(checks) == 3


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize(("hidden", "qk_norm"), [("post_norm", True), ("pre_norm", False)])
def test_fewer_bits_move_logits_as_they_move_ours(
    dtype: str, hidden: str, qk_norm: bool, engine: Engine, tmp_path: Path
) -> None:
    write_model(tmp_path, 3, hidden, qk_norm=qk_norm)
    check_all(verified(tmp_path, dtype=dtype))


def test_drafts_that_are_taken_are_taken_there_too(engine: Engine, tmp_path: Path) -> None:
    """Heads that read nothing but their token are often right where the trunk hardly reads more."""
    model = toy_model(3, "pre_norm", vocab_size=VOCABULARY, context="trunk")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("down_proj.weight", "o_proj.weight")):
                parameter.mul_(DAMPING)
            if name.endswith("eh_proj.weight"):
                parameter.copy_(torch.eye(32, 64))
            if name.endswith("enorm.weight"):
                parameter.fill_(0.2)  # as large as embeddings are
    write_tokenizer(tmp_path)
    save_model(model, tmp_path, special_tokens=SpecialTokens(0, (0,)))
    checks = verified(tmp_path, new_tokens=40)
    check_all(checks)
    taken, rounds = map(int, checks[5].detail.split(",")[0].split()[1:4:2])
    assert 0 < taken < rounds


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges"),
    [
        (words(QWEN35_WORDS), False),
        (words(QWEN2_WORDS), False),
        (words(LLAMA3_WORDS), True),
        (words(LLAMA3_WORDS), False),
        (words(GPT2_WORDS), False),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            False,
        ),
    ],
)
def test_a_thousand_strings_to_tokenize_have_our_ids(
    pre_tokenizer: Any, ignore_merges: bool, engine: Engine, tmp_path: Path
) -> None:
    model = toy_model(1, vocab_size=800)
    write_tokenizer(tmp_path, pre_tokenizer, size=800, ignore_merges=ignore_merges)
    save_model(model, tmp_path, special_tokens=SpecialTokens(0, (0,)))
    export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")
    texts = strings_to_tokenize(1000)
    answers = engine.ask(tmp_path / "m.gguf", texts, [], depths=0, folder=tmp_path)
    ours = [[0, *ids] for ids in TextTokenizer.load(tmp_path).encode_batch(texts)]
    other = [text for text, ids, i in zip(texts, ours, range(1000), strict=True)
             if ids != answers.ids[i]]  # fmt: skip
    assert not other


def test_a_wrong_way_of_cutting_would_be_found_out(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2's words leave combining marks to themselves, and nothing else is different."""
    right = export.gguf_tokenizer
    monkeypatch.setattr(
        export, "gguf_tokenizer", lambda *asked: replace(right(*asked), pre="qwen2")
    )
    model = toy_model(1, vocab_size=800)
    write_tokenizer(tmp_path, size=800)
    save_model(model, tmp_path, special_tokens=SpecialTokens(0, (0,)))
    export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")
    ids, *others = verify_llama_cpp(tmp_path, tmp_path / "m.gguf", PROMPTS)
    assert not ids.passed
    check_all(others)


def test_another_models_numbers_are_found_out(engine: Engine, tmp_path: Path) -> None:
    """Same shapes, one head turned off: the trunk passes, the depth does not."""
    write_model(tmp_path / "a", 3, "pre_norm")
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", dtype="f32")
    model = toy_model(3, "pre_norm", vocab_size=VOCABULARY, context="trunk")
    with torch.no_grad():
        model.get_parameter("heads.depths.1.eh_proj.weight").zero_()
    save_model(model, tmp_path / "a", special_tokens=SpecialTokens(0, (0,)))
    checks = verify_llama_cpp(tmp_path / "a", tmp_path / "a.gguf", PROMPTS, texts=[])
    assert [check.passed for check in checks[:5]] == [True, True, True, False, True]


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, 1)
    export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")
    with pytest.raises(DataError, match="at most 31 with 32 new ones"):
        verify_llama_cpp(tmp_path, tmp_path / "m.gguf", ["한국어 문장입니다." * 4])
    with pytest.raises(DataError, match="no prompt"):
        verify_llama_cpp(tmp_path, tmp_path / "m.gguf", [])


def test_a_file_that_the_engine_cannot_load_is_one_line(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="llama.cpp failed with") as failure:
        engine.ask(tmp_path / "m.gguf", ["a"], [], depths=0, folder=tmp_path)
    assert "\n" not in str(failure.value)


def test_an_engine_that_says_less_than_it_was_asked_is_a_failure(
    engine: Engine, tmp_path: Path
) -> None:
    for script, said in (
        ("echo model 1 2 3", "stopped early"),
        ("echo model 1 2 3; echo done; : > $4", "told less"),
        ("echo model 1 2 3; echo ids 0 x; echo done; : > $4", "are not whole"),
        ("kill -9 $$", "signal 9"),
    ):
        driver = tmp_path / "driver"
        driver.write_text(f"#!/bin/sh\n{script}\n")
        driver.chmod(0o755)
        with pytest.raises(CheckpointError, match=said):
            replace(engine, driver=driver).ask(
                tmp_path / "m.gguf", ["a"], [], depths=0, folder=tmp_path
            )


def test_what_was_never_drafted_does_not_pass() -> None:
    assert not acceptance_check(2, (0, 0), (0, 0)).passed
