"""Rewards from a classifier: right numbers, kept once, nothing made up."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from wmtp.data.prepare import prepare_cached
from wmtp.data.reward_model import judge_all, load_reward_model, rewards_by_model, text_of
from wmtp.data.shards import Shards
from wmtp.data.sources import Source
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.errors import CheckpointError, DataError
from wmtp.runtime.device import choose_device

DEVICE = choose_device("cpu", "fp32")
TEXTS = ["a = 1\n", "b = a + 1\n", "print(b)\n" * 3]


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return train_tokenizer(TEXTS * 5, 280)


@pytest.fixture
def shards(tmp_path: Path, tokenizer: TextTokenizer) -> Shards:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": {text!r}}}\n'.replace("'", '"') for text in TEXTS))
    return prepare_cached((Source(str(path)),), tokenizer, tmp_path / "cache")


def classifier(folder: Path, tokenizer: TextTokenizer, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "num_labels": 1,
    }  # fmt: skip
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, pad_token_id=None, **(sizes | changes))
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model.eval()


@pytest.mark.parametrize("labels", [1, 2])
def test_a_reward_is_the_probability_of_right(
    labels: int, shards: Shards, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    model = classifier(tmp_path / "rm", tokenizer, num_labels=labels)
    found = rewards_by_model(shards, tokenizer, tmp_path / "rm", DEVICE, lambda _: None)
    for text, reward in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            ids = [*tokenizer.bos_ids, *tokenizer.encode(text)]
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        expected = logits[0].sigmoid() if labels == 1 else logits.softmax(0)[1]
        assert reward == pytest.approx(expected.item(), rel=1e-5)


def test_the_text_comes_back_from_the_tokens(shards: Shards, tokenizer: TextTokenizer) -> None:
    assert [text_of(shards, tokenizer, i) for i in range(3)] == TEXTS


def test_a_second_run_finds_the_rewards(
    shards: Shards, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    classifier(tmp_path / "rm", tokenizer)
    lines: list[str] = []
    first = np.array(rewards_by_model(shards, tokenizer, tmp_path / "rm", DEVICE, lines.append))
    assert len(lines) == 1
    again = rewards_by_model(shards, tokenizer, tmp_path / "rm", DEVICE, lines.append)
    assert len(lines) == 1
    assert (first == again).all()


def test_documents_too_long_for_it_have_no_reward(
    shards: Shards, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    longest = len(tokenizer.bos_ids) + len(tokenizer.encode(TEXTS[0]))
    classifier(tmp_path / "rm", tokenizer, max_position_embeddings=longest)
    lines: list[str] = []
    found = rewards_by_model(shards, tokenizer, tmp_path / "rm", DEVICE, lines.append)
    assert np.isfinite(found).sum() >= 1
    assert np.isnan(found[2])
    assert "too long" in lines[-1]
    classifier(tmp_path / "blind", tokenizer, max_position_embeddings=1)
    with pytest.raises(DataError, match="judge none"):
        rewards_by_model(shards, tokenizer, tmp_path / "blind", DEVICE, lines.append)


def saved(model: Any, folder: Path, tokenizer: TextTokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def test_positions_that_begin_after_the_padding_leave_less_room(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """Of RoBERTa's 12 positions the first two are its padding's and the one before."""
    config = RobertaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_labels=1,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    folder = saved(RobertaForSequenceClassification(config), tmp_path, tokenizer)
    model = load_reward_model(folder, DEVICE)
    assert model.longest == 10
    rewards = [model.reward("=" * (10 + more - len(tokenizer.bos_ids))) for more in (0, 1)]
    assert [np.isfinite(reward) for reward in rewards] == [True, False]


def test_a_reward_model_may_know_no_longest_text(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    config = BloomConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, n_layer=1, n_head=2, num_labels=1,
        pad_token_id=None,
    )  # fmt: skip
    folder = saved(BloomForSequenceClassification(config), tmp_path, tokenizer)
    assert 0 < load_reward_model(folder, DEVICE).reward("a = 1\n") < 1


def test_what_is_no_number_is_no_reward(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    model = classifier(tmp_path, tokenizer)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not give a number"):
        load_reward_model(tmp_path, DEVICE).reward("a = 1\n")


def test_a_missing_last_layer_is_never_made_up(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    classifier(tmp_path, tokenizer)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["score.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks score\.weight"):
        load_reward_model(tmp_path, DEVICE)


def test_more_than_two_labels_are_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    classifier(tmp_path, tokenizer, num_labels=3)
    with pytest.raises(CheckpointError, match="3 labels"):
        load_reward_model(tmp_path, DEVICE)


def test_the_script_makes_one_that_has_learned(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("made", root / "scripts/make_reward_model.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    texts = [(f"x = {i}  # {'ok' if i % 2 else 'no'}\n", float(i % 2)) for i in range(20)]
    tokenizer = train_tokenizer([text for text, _ in texts] * 3, 280)
    loss = script.make_reward_model(texts, tokenizer, tmp_path / "rm", steps=120, seed=0)
    assert loss < 0.4  # 0.69 is chance
    model = load_reward_model(tmp_path / "rm", DEVICE)
    assert model.reward("x = 3  # ok\n") > model.reward("x = 4  # no\n")
    assert script.labelled_texts(root / "datasets/contest_small.jsonl")


def test_long_judging_says_how_far_it_is(
    shards: Shards, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    classifier(tmp_path / "rm", tokenizer)
    model, said = load_reward_model(tmp_path / "rm", DEVICE), list[str]()
    judge_all(model, shards, tokenizer, said.append, seconds_between_lines=0.0)
    assert said == [f"{n} of 3 documents judged" for n in (1, 2, 3)]
