import pickle
import random

import pytest

from tests.corpus.examples import PROSE, document
from wmtp.corpus.document import Dropped
from wmtp.corpus.stages import Contamination, EvaluationNgrams
from wmtp.corpus.stages.contamination import tokens_of

WORDS = [f"낱말{i}" for i in range(4000)]
QUESTION = " ".join(WORDS[:20])
SHORT = " ".join(WORDS[100:109])
TINY = " ".join(WORDS[200:205])

EVALUATION = EvaluationNgrams.of({"quiz.jsonl": [QUESTION, TINY], "other.json": [SHORT, QUESTION]})
STAGE = Contamination(EVALUATION)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (f"앞 글. {QUESTION} 뒤 글.", "quiz.jsonl"),
        ("그는 말했다: " + ", ".join(WORDS[5:18]).upper() + "!", "quiz.jsonl"),
        (f"{PROSE}\n{SHORT}", "other.json"),
    ],
)
def test_an_overlap_is_dropped_and_names_its_file(text: str, file: str) -> None:
    outcome = STAGE(document(text))
    assert isinstance(outcome, Dropped)
    assert outcome.reason == "evaluation_overlap"
    assert outcome.detail.startswith(f"{file}: 낱말")
    assert STAGE.counted(document(text)) == (outcome, {})


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        " ".join(WORDS[:12]),  # one token short of a run
        " ".join([*WORDS[:12], "다른", *WORDS[12:20]]),
        " ".join(WORDS[19::-1]),  # every word, in another order
        TINY,
        " ".join(WORDS[100:108]),
        "",
    ],
)
def test_no_overlap_stays(text: str) -> None:
    given = document(text)
    assert STAGE(given) is given


def test_agrees_with_comparing_every_run() -> None:
    """Against the definition, on texts that share runs of many lengths."""
    rng = random.Random(0)
    runs = {tuple(tokens_of(QUESTION)[i : i + 13]) for i in range(8)}
    found = 0
    for _ in range(300):
        starts = [rng.randrange(20) for _ in range(6)]
        tokens = [w for start in starts for w in WORDS[start : start + rng.randrange(20)]]
        wanted = any(tuple(tokens[i : i + 13]) in runs for i in range(len(tokens)))
        only_question = Contamination(EvaluationNgrams.of({"q": [QUESTION]}))
        assert isinstance(only_question(document(" ".join(tokens))), Dropped) == wanted
        found += wanted
    assert 30 < found < 270


def test_is_the_same_in_another_process_and_for_any_order_of_texts() -> None:
    again = pickle.loads(pickle.dumps(STAGE))
    swapped = EvaluationNgrams.of({"quiz.jsonl": [TINY, QUESTION], "other.json": [QUESTION, SHORT]})
    for text in (QUESTION, SHORT, TINY, PROSE):
        given = document(text)
        assert again(given) == STAGE(given) == Contamination(swapped)(given)


def test_memory_is_sixteen_bytes_for_each_run() -> None:
    long = EvaluationNgrams.of({"long": [" ".join(WORDS)]})
    assert long.hashes[13].nbytes + long.files[13].nbytes <= 16 * (4000 - 12)


def test_lengths_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="shortest=14"):
        EvaluationNgrams.of({}, n=13, shortest=14)
