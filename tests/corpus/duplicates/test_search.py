import os
import random
import resource
import tracemalloc
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus.examples import real_texts
from wmtp.corpus.duplicates import (
    Duplicates,
    DuplicateSettings,
    Signatures,
    SignatureShape,
    SplitSettings,
    StoredTexts,
    comparable,
    find_duplicates,
    in_validation,
    keeping,
    sign,
    write_texts,
)
from wmtp.corpus.duplicates import search as search_module
from wmtp.corpus.duplicates.signatures import jaccard, shingles

SETTINGS = DuplicateSettings()


def units_of(folder: Path, texts: Sequence[str], cuts: Sequence[int] = ()) -> list[Path]:
    """Signatures and texts, in units that end at the cuts."""
    units = []
    for start, end in pairwise([0, *cuts, len(texts)]):
        unit = folder / f"unit-{start:05d}-{end:05d}"
        unit.mkdir(parents=True)
        sign(texts[start:end], SETTINGS.shape).write(unit)
        write_texts(unit, texts[start:end])
        units.append(unit)
    return units


def search(
    folder: Path,
    texts: Sequence[str],
    settings: DuplicateSettings = SETTINGS,
    cuts: Sequence[int] = (),
) -> Duplicates:
    units = units_of(folder, texts, cuts)
    found = find_duplicates(units, StoredTexts(units), folder / "scratch", settings)
    assert not (folder / "scratch").exists()
    return found


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with a share of its characters replaced, taken out or put in."""
    letters = list(text)
    for _ in range(round(share * len(text))):
        place = rng.randrange(len(letters))
        letters[place] = rng.choice(["", "가", "은", letters[place] + "는"])
    return comparable("".join(letters))


def made_texts(count: int, rng: random.Random) -> list[str]:
    syllables = [chr(rng.randrange(0xAC00, 0xD7A3)) for _ in range(300)]
    return [
        " ".join("".join(rng.choices(syllables, k=rng.randint(1, 5))) for _ in range(30))
        for _ in range(count)
    ]


def all_pairs(texts: Sequence[str], least: float) -> dict[tuple[int, int], float]:
    """Similarity of every pair that has at least so much, by the definition."""
    sets = [shingles(text) for text in texts]
    places = defaultdict(list)
    for i, each in enumerate(sets):
        for shingle in each:
            places[shingle].append(i)
    together = {(i, j) for where in places.values() for j in where for i in where if i < j}
    values = {(i, j): jaccard(sets[i], sets[j]) for i, j in together}
    return {pair: value for pair, value in values.items() if value >= least}


def dropped_by_definition(texts: Sequence[str], pairs: dict[tuple[int, int], float]) -> set[int]:
    earlier = defaultdict(list)
    for (i, j), value in pairs.items():
        if value >= SETTINGS.threshold:
            earlier[j].append(i)
    dropped: set[int] = set()
    for j in range(len(texts)):
        if any(i not in dropped for i in earlier[j]):
            dropped.add(j)
    return dropped


def check_against_every_pair(folder: Path, texts: list[str]) -> tuple[set[int], Duplicates]:
    pairs = all_pairs(texts, SETTINGS.group_threshold)
    expected = dropped_by_definition(texts, pairs)
    found = search(folder, texts)
    assert set(np.flatnonzero(~found.kept)) == expected
    for number in expected:
        original = found.repeats(number)
        assert original is not None
        assert original < number
        assert found.kept[original]
        value = jaccard(shingles(texts[original]), shingles(texts[number]))
        assert value >= SETTINGS.threshold
        assert found.reason(number) == (
            "exact_duplicate" if texts[original] == texts[number] else "near_duplicate"
        )
        if texts[original] != texts[number]:
            assert found.percent[number] == round(100 * value)
    kept_pairs = [pair for pair in pairs if found.kept[list(pair)].all()]
    assert all(pairs[pair] < SETTINGS.threshold for pair in kept_pairs)
    parted = [pair for pair in kept_pairs if len({*found.group[list(pair)]}) > 1]
    # at 0.5 a pair agrees in no band once in 270 times, and its sketch falls short about as often
    assert len(parted) <= 0.02 * len(kept_pairs) + 1
    assert all(pairs[pair] < 0.6 for pair in parted)
    return expected, found


@pytest.mark.parametrize(("name", "shortest"), [("nsmc_reviews", 20), ("msdocs_ht", 200)])
def test_planted_duplicates_in_real_text_go(tmp_path: Path, name: str, shortest: int) -> None:
    rng = random.Random(0)
    real = [comparable(text)[:400] for text in real_texts(name, 400) if len(text) >= shortest]
    base = list(dict.fromkeys(real))[:200]
    planted = [edited(text, rng.choice([0, 0.01, 0.03, 0.06, 0.15]), rng) for text in base[:120]]
    expected, _ = check_against_every_pair(tmp_path, base + planted)
    assert 40 <= len(expected) <= 130


def test_planted_duplicates_in_made_text_go(tmp_path: Path) -> None:
    rng = random.Random(1)
    base = made_texts(200, rng)
    planted = [edited(text, rng.choice([0, 0.01, 0.02, 0.06]), rng) for text in base[:120]]
    mixed = [*base, *planted]
    rng.shuffle(mixed)
    expected, _ = check_against_every_pair(tmp_path, mixed)
    assert 50 < len(expected) < 110


def test_no_duplicates_no_drops(tmp_path: Path) -> None:
    """Negative control: other texts stay, whatever their length."""
    texts = [*made_texts(200, random.Random(2)), "", "가", "나", "가나다라", "가나다라마", "a b"]
    found = search(tmp_path, texts)
    assert found.kept.all()
    assert [found.reason(i) for i in (0, 205)] == [None, None]
    assert len({*found.group}) == len(texts)


@pytest.mark.parametrize("memory", [4_000, 1 << 30])
@pytest.mark.parametrize("cuts", [(), (100, 100, 150), range(7, 200, 17)])
def test_units_and_memory_change_nothing(tmp_path: Path, memory: int, cuts: Sequence[int]) -> None:
    rng = random.Random(3)
    base = made_texts(100, rng)
    texts = base + [edited(rng.choice(base), rng.choice([0, 0.02, 0.05, 0.1]), rng) for _ in base]
    plain = search(tmp_path / "plain", texts)
    other = search(tmp_path / "other", texts, replace(SETTINGS, memory_bytes=memory), cuts)
    assert np.array_equal(plain.link, other.link)
    assert np.array_equal(plain.percent, other.percent)
    assert 30 < (~plain.kept).sum() < 100


def test_the_order_decides_who_stays(tmp_path: Path) -> None:
    text = made_texts(1, random.Random(4))[0]
    longer = text + " 끝"
    found = search(tmp_path / "one", [text, longer])
    assert (found.repeats(0), found.repeats(1)) == (None, 0)
    found = search(tmp_path / "two", [longer, text, longer])
    assert [found.repeats(i) for i in range(3)] == [None, 0, 0]
    assert [found.reason(i) for i in range(3)] == [None, "near_duplicate", "exact_duplicate"]


def test_a_chain_drops_only_what_is_like_a_kept_text(tmp_path: Path) -> None:
    """A is like B, B like C, C not like A: A and C stay; a copy of B repeats A, as B does."""
    words = made_texts(1, random.Random(5))[0].split()
    a, b, c = (" ".join(words[i : i + 24]) for i in (0, 1, 2))
    value = {pair: jaccard(shingles(one), shingles(two))
             for pair, one, two in (("ab", a, b), ("bc", b, c), ("ac", a, c))}  # fmt: skip
    between = min(value["ab"], value["bc"])
    assert value["ac"] < between
    settings = replace(SETTINGS, threshold=between)
    found = search(tmp_path, [a, b, c, b, c], settings)
    assert [found.repeats(i) for i in range(5)] == [None, 0, None, 0, 2]
    assert found.percent[3] == found.percent[1] < 100
    assert found.group.tolist() == [0, 0, 0, 0, 0]


def test_many_copies_of_a_form_cost_no_square_of_them(tmp_path: Path) -> None:
    """200 versions of one letter: 20,000 pairs, of which each text needs one."""
    letter = " ".join(made_texts(4, random.Random(6)))
    texts = [letter.replace(letter[40:44], f"{i:04d}", 1) for i in range(200)]
    asked: list[int] = []
    units = units_of(tmp_path, texts)
    stored = StoredTexts(units)

    def text_of(number: int) -> str:
        asked.append(number)
        return stored(number)

    found = find_duplicates(units, text_of, tmp_path / "scratch", SETTINGS)
    assert found.kept.sum() == 1
    assert set(found.link) == {0}
    assert len(asked) == len(texts)


def test_very_long_texts_are_judged_by_their_signatures(tmp_path: Path) -> None:
    rng = random.Random(7)
    text, other = (" ".join(made_texts(20, rng)) for _ in range(2))
    texts = [text, edited(text, 0.01, rng), other]
    assert search(tmp_path / "a", texts).kept.tolist() == [True, False, True]
    short = search(tmp_path / "b", texts, replace(SETTINGS, longest=10))
    assert short.kept.tolist() == [True, False, True]


def bytes_at_most(folder: Path, documents: int, memory: int) -> int:
    """Traced peak of a search among documents that agree in nothing."""
    rng, unit, shape = np.random.default_rng(0), 2000, SignatureShape(bands=8)
    units = [folder / f"{start:06d}" for start in range(0, documents, unit)]
    for each in units:
        each.mkdir(parents=True)
        exact, bands = (rng.integers(0, 2**63, size).astype(np.uint64)
                        for size in ((unit, 2), (shape.bands, unit)))  # fmt: skip
        Signatures(exact, bands, np.zeros((unit, shape.permutations), np.uint8)).write(each)
    settings = replace(SETTINGS, memory_bytes=memory, shape=shape)
    tracemalloc.start()
    try:
        assert find_duplicates(units, str, folder / "scratch", settings).kept.all()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_a_few_bytes_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_NUMBERS_AT_A_TIME", 1000)
    few, many = 6_000, 24_000
    bounded = [bytes_at_most(tmp_path / f"b{n}", n, 200_000) for n in (few, many)]
    # 5 for each document, and what a unit of only 2000 takes for its open files
    assert bounded[1] - bounded[0] < 12 * (many - few)
    # negative control: with memory for everything, everything is sorted at once
    free = [bytes_at_most(tmp_path / f"f{n}", n, 1 << 30) for n in (few, many)]
    assert free[1] - free[0] > 24 * (many - few)


def test_an_empty_corpus_and_empty_units(tmp_path: Path) -> None:
    assert len(search(tmp_path / "none", []).link) == 0
    assert search(tmp_path / "some", ["가", "가"], cuts=(0, 1, 1)).repeats(1) == 0


def test_settings_and_signatures_without_a_meaning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group_threshold"):
        DuplicateSettings(group_threshold=0.9)
    with pytest.raises(ValueError, match="at least 1"):
        DuplicateSettings(memory_bytes=0)
    with pytest.raises(ValueError, match="42 bands"):
        search(tmp_path, ["가"], replace(SETTINGS, shape=SignatureShape(bands=2)))


def split(found: Duplicates, units: list[Path], share: float, seed: int = 0) -> list[bool]:
    settings = SplitSettings(validation_share=share, seed=seed)
    return in_validation(found, units, settings).tolist()


def test_a_split_parts_no_group(tmp_path: Path) -> None:
    rng = random.Random(8)
    base = made_texts(400, rng)
    cousins = [edited(text, 0.05, rng) for text in base[:200]]
    texts = base + cousins
    units = units_of(tmp_path, texts, cuts=(150, 470))
    found = find_duplicates(units, StoredTexts(units), tmp_path / "scratch", SETTINGS)
    chosen = split(found, units, 0.3)
    assert 0.2 < np.mean(chosen) < 0.4
    pairs = all_pairs(texts, SETTINGS.group_threshold)
    assert len(pairs) > 150
    assert all(chosen[i] == chosen[j] for i, j in pairs)
    # negative control: texts chosen one by one do part
    alone = Duplicates(np.arange(len(texts), dtype=np.uint32), np.zeros(len(texts), np.uint8))
    parted = split(alone, units, 0.3)
    assert any(parted[i] != parted[j] for i, j in pairs)
    assert split(found, units, 0.3) == chosen != split(found, units, 0.3, seed=1)
    assert not any(split(found, units, 0))
    assert all(split(found, units, 1))


def test_a_corpus_that_grows_keeps_its_split(tmp_path: Path) -> None:
    texts = made_texts(300, random.Random(9))
    shares = []
    for name, some in (("small", texts[:200]), ("large", texts)):
        units = units_of(tmp_path / name, some)
        found = find_duplicates(units, StoredTexts(units), tmp_path / "scratch", SETTINGS)
        shares.append(split(found, units, 0.5))
    assert shares[1][:200] == shares[0]


def test_a_large_group_is_for_training(tmp_path: Path) -> None:
    units = units_of(tmp_path, made_texts(60, random.Random(10)))
    percent = np.zeros(60, np.uint8)
    one_group = Duplicates(np.zeros(60, np.uint32), percent)
    assert not any(split(one_group, units, 1))
    two = Duplicates(np.repeat(np.array([0, 30], np.uint32), 30), percent)
    assert all(split(two, units, 1))
    with pytest.raises(ValueError, match="largest_group"):
        SplitSettings(largest_group=256)


def test_units_without_number_need_few_open_files(tmp_path: Path) -> None:
    texts = made_texts(30, random.Random(11))
    units = units_of(tmp_path, [*texts, *texts[:3]], list(range(1, 33)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limits[1]))
    try:
        found = find_duplicates(units, StoredTexts(units), tmp_path / "scratch", SETTINGS)
        chosen = in_validation(found, units, SplitSettings(0.5))
        # negative control: all units at once are more than may be open
        with pytest.raises(OSError, match="Too many open files"):
            [Signatures.open(unit) for unit in units]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert np.flatnonzero(~found.kept).tolist() == [30, 31, 32]
    assert chosen[30:].tolist() == chosen[:3].tolist()


def all_ahead(work: Any, tasks: Any, in_order: bool = False) -> Any:
    """Works like processes that are far ahead: no decision is known where tasks are made."""
    assert in_order or work.__name__ != "_compare"
    return iter([work(None, task) for task in list(tasks)])


def test_comparing_far_ahead_of_decisions_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(12)
    texts = made_texts(12, rng)
    for _ in range(160):  # chains: a copy of a copy is like one that is dropped, or like none kept
        texts.append(edited(rng.choice(texts), rng.choice([0.01, 0.04, 0.1]), rng))
    units = units_of(tmp_path, texts)
    expected = find_duplicates(units, StoredTexts(units), tmp_path / "scratch", SETTINGS)
    assert 60 < expected.kept.sum() < 150
    missing: list[int] = []
    real = keeping._Comparer.__call__
    for at_a_time in (1, 7, 1 << 15):
        monkeypatch.setattr(keeping, "_PAIRS_AT_A_TIME", at_a_time)
        found = find_duplicates(
            units, StoredTexts(units), tmp_path / "scratch", SETTINGS, all_ahead
        )
        assert np.array_equal(found.link, expected.link)
        assert np.array_equal(found.percent, expected.percent)

    # negative control: some decisions were foreseen wrongly, and their pairs compared afterwards
    def watched(self: Any, one: int, other: int, estimate: float) -> float:
        missing.append(one)
        return real(self, one, other, estimate)

    def all_ahead_watched(work: Any, tasks: Any, in_order: bool = False) -> Any:
        results = all_ahead(work, tasks, in_order)
        if in_order and work is keeping._compare:
            monkeypatch.setattr(keeping._Comparer, "__call__", watched)
        return results

    find_duplicates(units, StoredTexts(units), tmp_path / "scratch", SETTINGS, all_ahead_watched)
    assert missing
