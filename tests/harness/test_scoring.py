"""What lm-evaluation-harness is told of a model, against the model itself; needs no harness."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.model_directories import write_model
from wmtp import cli
from wmtp.errors import ConfigError
from wmtp.harness.command import with_our_tasks
from wmtp.harness.scoring import Scorer, generation_wanted, place_named

TEXT = "def double(x):\n    return 2 * x\n"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.load(write_model(tmp_path_factory.mktemp("toy") / "model"), "cpu", None)


def log_probabilities(scorer: Scorer, ids: list[int]) -> torch.Tensor:
    """``[S, V]`` of the token after each, straight from the model's own logits of head 0."""
    with torch.no_grad():
        hidden = scorer.model.next_token_hidden(torch.tensor([ids]))
        return scorer.model.unembed(hidden)[0].double().log_softmax(-1)


def test_a_continuations_likelihood_is_the_sum_over_its_tokens(scorer: Scorer) -> None:
    context, following = scorer.tokenizer.encode("def f"), scorer.tokenizer.encode("(x): return")
    found, _ = scorer.continuation(context, following)
    log_p = log_probabilities(scorer, [*context, *following])
    by_hand = sum(
        float(log_p[len(context) - 1 + place, token]) for place, token in enumerate(following)
    )
    assert found == pytest.approx(by_hand, abs=1e-4)
    shifted = sum(float(log_p[len(context) + i, token]) for i, token in enumerate(following))
    assert abs(found - shifted) > 0.1, "a target read one place too far would be noticed"


def test_likeliest_is_said_of_the_likeliest_alone(scorer: Scorer) -> None:
    ids = scorer.tokenizer.encode("return")
    best = int(log_probabilities(scorer, ids)[-1].argmax())
    assert scorer.continuation(ids, [best])[1]
    assert not scorer.continuation(ids, [(best + 1) % 320])[1]
    assert scorer.continuation(ids, []) == (0.0, True)


def test_of_a_long_context_the_end_counts(scorer: Scorer) -> None:
    ids = scorer.tokenizer.encode(TEXT * 40)
    assert len(ids) > scorer.longest
    whole, _ = scorer.continuation(ids[:-1], ids[-1:])
    end, _ = scorer.continuation(ids[-scorer.longest - 1 : -1], ids[-1:])
    other, _ = scorer.continuation(ids[-4:-1], ids[-1:])
    assert whole == end != other


def test_a_text_is_scored_once_per_token(scorer: Scorer) -> None:
    ids = [scorer.prefix, *scorer.tokenizer.encode(TEXT)]
    assert len(ids) <= scorer.longest
    log_p = log_probabilities(scorer, ids)
    by_hand = sum(float(log_p[place, token]) for place, token in enumerate(ids[1:]))
    assert scorer.text(TEXT) == pytest.approx(by_hand, abs=1e-4)
    longer = TEXT * 40
    count = len(scorer.tokenizer.encode(longer))
    assert count > scorer.longest
    assert scorer.text(longer) / count == pytest.approx(scorer.text(TEXT) / (len(ids) - 1), rel=0.2)


def test_texts_are_those_of_greedy_decoding(scorer: Scorer) -> None:
    ids = scorer.tokenizer.encode("def")
    for _ in range(6):
        ids.append(int(log_probabilities(scorer, ids)[-1].argmax()))
    expected = scorer.tokenizer.decode(ids)[len("def") :]
    assert scorer.write("def", generation_wanted({"max_gen_toks": 6})) == expected
    stop = expected[1]
    assert (
        scorer.write("def", generation_wanted({"max_gen_toks": 6, "until": stop}))
        == (expected[: expected.index(stop)])
    )


def test_options_of_decoding_are_understood() -> None:
    wanted = generation_wanted({"until": "x", "do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (wanted.stop, wanted.temperature, wanted.top_p) == (("x",), 0.7, 0.9)
    assert generation_wanted({"until": ["x", "y"], "temperature": 0.7}).temperature == 0
    assert generation_wanted({}).stop == ()


def test_an_unknown_device_is_refused() -> None:
    assert place_named("cpu").torch_device.type == "cpu"
    with pytest.raises(ConfigError, match="--device is 'tpu'"):
        place_named("tpu")


def test_our_tasks_are_named_unless_others_are() -> None:
    ours = ["--include_path", str(Path(cli.__file__).parents[1] / "harness/tasks")]
    assert with_our_tasks(["--tasks", "a"]) == ["--tasks", "a", *ours]
    assert with_our_tasks(["--tasks=a"]) == ["--tasks=a", *ours]
    for typed in (["ls", "--tasks"], ["--help"], ["--tasks", "a", "--include_path", "b"]):
        assert with_our_tasks(typed) == typed


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="it is installed")
def test_without_the_harness_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["wmtp", "lm-eval", "--tasks", "hellaswag"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "pip install 'wmtp[lm-eval]'" in capsys.readouterr().err
