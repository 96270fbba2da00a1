"""What passes, and the texts that engines are tried with."""

import unicodedata

import torch

from tests.export.toys import tokenizer
from wmtp.verify.check import Check
from wmtp.verify.ours import check_token_ids, check_trunk, logits_difference
from wmtp.verify.prompts import strings_to_tokenize


def test_a_check_passes_up_to_its_limit_and_nan_never() -> None:
    assert Check("a", 0.5, 0.5).passed
    assert not Check("a", 0.51, 0.5).passed
    assert not Check("a", float("nan"), 0.5).passed
    assert not Check("a", float("inf"), 0.5).passed


def test_differences_count_in_units_of_the_largest_logit_above_one() -> None:
    small, large = torch.tensor([[0.5, -0.25]]), torch.tensor([[50.0, -25.0]])
    assert logits_difference(small, small + 0.125) == 0.125
    assert logits_difference(large, large + 5) == 0.1


def test_nan_anywhere_is_the_largest_difference() -> None:
    one = torch.zeros(2, 3)
    spoiled = one.clone()
    spoiled[1, 1] = torch.nan
    for order in ([one, spoiled], [spoiled, one]):
        assert not check_trunk("logits", [one, one], order, 1.0).passed


def test_a_thousand_strings_are_the_same_each_time_and_of_all_kinds() -> None:
    strings = strings_to_tokenize()
    assert len(strings) == 1000
    assert strings == strings_to_tokenize()
    assert strings != strings_to_tokenize(seed=1)
    everything = "".join(strings)
    names = {unicodedata.name(c, "").split(" ")[0] for c in set(everything)}
    assert {"HANGUL", "CJK", "DIGIT", "LATIN", "ZERO", "FULLWIDTH", "CYRILLIC"} <= names
    for piece in ("    ", "\n\n\n", "\t", "\r\n", "👩\u200d👩", "\u119e", "def f(x):", "訓民正音"):
        assert any(piece in string for string in strings), piece


def test_other_ids_are_counted_and_the_first_string_is_shown() -> None:
    strings = strings_to_tokenize()
    ids = [[*tokenizer().bos_ids, *tokenizer().encode(text)] for text in strings]
    assert check_token_ids(tokenizer(), ids).passed
    ids[7] = ids[7][:-1]
    ids[20] = [*ids[20], 5]
    found = check_token_ids(tokenizer(), ids)
    assert found.found == 2
    assert repr(strings[7][:40]) in found.detail
