from collections.abc import Iterator

import pytest

from wmtp.data.tokenizer_sample import choose_sample, share_equally
from wmtp.errors import DataError

SIZES = {"reviews": 3000, "manuals": 1000, "law": 40}
TEXT_BYTES = 20


def texts(order: int = 1) -> Iterator[tuple[str, str]]:
    found = [
        (name, f"{name} {number:>{TEXT_BYTES - 1 - len(name)}}")
        for name, count in SIZES.items()
        for number in range(count)
    ]
    return iter(found[::order])


def test_each_source_gives_as_much_as_the_others_as_far_as_it_has() -> None:
    sample = choose_sample(texts, 20_000 + 40 * TEXT_BYTES, seed=1)
    reviews, manuals, law = sample.shares
    assert (reviews.name, manuals.name, law.name) == tuple(SIZES)
    assert law.sampled_bytes == law.text_bytes == 40 * TEXT_BYTES
    for share in (reviews, manuals):
        assert abs(share.sampled_bytes - 10_000) <= 2 * TEXT_BYTES
    taken = list(sample.texts(texts()))
    assert len(taken) == sum(share.sampled_documents for share in sample.shares)
    assert sum(map(len, taken)) == sum(share.sampled_bytes for share in sample.shares)


def test_the_order_of_the_texts_does_not_matter_and_the_seed_does() -> None:
    def taken(seed: int, order: int) -> set[str]:
        return set(choose_sample(lambda: texts(order), 9000, seed).texts(texts()))

    assert taken(1, 1) == taken(1, -1)
    assert taken(1, 1) != taken(2, 1)


def test_equal_texts_stay_together() -> None:
    twice = [("a", f"text {number % 50}") for number in range(100)]
    taken = list(choose_sample(lambda: twice, 300).texts(twice))
    assert taken
    assert all(taken.count(text) == 2 for text in taken)


def test_without_a_bound_or_with_a_large_one_all_is_taken() -> None:
    for most in (None, 10**9):
        assert len(list(choose_sample(texts, most).texts(texts()))) == sum(SIZES.values())


def test_a_source_of_one_large_document_is_not_lost() -> None:
    one = [("a", "x" * 1000), ("b", "y")]
    assert len(list(choose_sample(lambda: one, 10).texts(one))) == 2


def test_nothing_to_sample_is_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        choose_sample(list, 10)
    with pytest.raises(DataError, match="sample_bytes is 0"):
        choose_sample(texts, 0)


def test_shares_never_exceed_the_total() -> None:
    assert share_equally({"a": 5, "b": 5}, 3) == {"a": 1, "b": 2}
    assert share_equally({"a": 5, "b": 5}, 99) == {"a": 5, "b": 5}
