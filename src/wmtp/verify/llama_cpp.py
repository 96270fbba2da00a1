"""An exported GGUF file in the real llama.cpp, beside our own model.

Head depths are compared as llama.cpp drafts with them: in the context ``trunk``, depth after depth
on the engine's own drafts, after rejections too.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.export.gguf_tensors import EXACT_DEPTHS_OF_HY_V3
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.drafters import TrunkFedDrafter
from wmtp.model.decoding.readers import build_reader
from wmtp.model.decoding.row_cache import HOLE
from wmtp.model.decoding.steps import PLAIN_STEPS
from wmtp.model.generate import generate_many
from wmtp.model.heads.sequential import SequentialHeads
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import StoredConfig
from wmtp.model.trunk import TrunkStates
from wmtp.verify.check import Check
from wmtp.verify.gguf_file import check_same_model, read_gguf_file
from wmtp.verify.llama_cpp_engine import Answers, Prompt, Round, find_engine
from wmtp.verify.prompts import strings_to_tokenize
from wmtp.verify.rounding import round_model

LOGIT_LIMIT = 1e-2
"""Largest difference of a logit between exact arithmetics that add up in another order. A file in
fewer bits may differ by ``ROUNDING_FACTOR`` times as much as rounding moves our own model."""

ROUNDING_FACTOR = 2.0
"""Roundings fall otherwise in another order of sums: two such models differ from each other nearly
as much as each from the exact one."""

LEAST_ACCEPTANCE_LIMIT = 0.02
STANDARD_ERRORS = 3.0
"""Shares of rounds may differ by so many standard errors: the rounds do not begin at the same
tokens, and one near-tie that falls otherwise makes another text."""


@dataclass(frozen=True)
class OurLogits:
    """What our model says where the engine was asked.

    Attributes:
        trunk: ``[R, V]`` of each prompt.
        rounds: ``[V]`` of each round of the engine.
    """

    trunk: list[Tensor]
    rounds: list[Tensor]


def verify_llama_cpp(
    model_directory: Path,
    exported: Path,
    prompts: Sequence[str],
    *,
    llama_cpp: Path | None = None,
    new_tokens: int = 32,
    texts: Sequence[str] | None = None,
) -> list[Check]:
    """Run llama.cpp on an exported file and compare all that it does with our own model.

    Args:
        model_directory: what was exported.
        exported: the GGUF file.
        prompts: to be read and continued; a few lines each.
        llama_cpp: where the engine is, see ``find_engine``.
        new_tokens: that each prompt is continued by.
        texts: to be tokenized beside the prompts; None for a thousand strange ones.

    Returns:
        One check for each thing compared; none is left out because it failed.

    Raises:
        CheckpointError: the file is cut off, foreign or of another model, or the engine failed.
        ConfigError: there is no engine; says how to get it.
        DataError: the directory has no tokenizer, or a prompt is too long.
    """
    if not prompts:
        raise DataError("There is no prompt to verify with. Give at least one.")
    file = read_gguf_file(exported)
    stored = read_config(model_directory)
    check_same_model(file, stored, model_directory)
    tokenizer = TextTokenizer.load(model_directory)
    asked = [_prompt(stored, tokenizer, text, new_tokens) for text in prompts]
    engine = find_engine(llama_cpp)
    model = load_model(model_directory, trunk_only=not file.has_heads).eval()
    depths = model.horizon - 1
    if file.architecture == "hy_v3":
        depths = min(depths, EXACT_DEPTHS_OF_HY_V3)

    all_texts = [*prompts, *(strings_to_tokenize() if texts is None else texts)]
    with tempfile.TemporaryDirectory() as folder:
        answers = engine.ask(exported, all_texts, asked, depths=depths, folder=Path(folder))
        with torch.no_grad():
            ours = _our_logits(model, asked, answers)
            ids = _token_ids(tokenizer, all_texts, answers)
            acceptance = list(_acceptance(model, asked, answers, depths))
            rounded = ours
            if file.dtype != "f32":
                round_model(model, file.dtype)
                rounded = _our_logits(model, asked, answers)
        trunk = _trunk_logits(ours, rounded, answers)
        return [
            ids,
            trunk,
            *_head_logits(ours, rounded, answers, depths, left=model.horizon - 1 - depths),
            _greedy_text(asked, ours, answers, depths, trunk.limit),
            *acceptance,
        ]


def _prompt(stored: StoredConfig, tokenizer: TextTokenizer, text: str, new_tokens: int) -> Prompt:
    ids = [*tokenizer.bos_ids, *tokenizer.encode(text)]
    room = stored.trunk.max_seq_length - stored.heads.horizon
    if not 2 <= len(ids) <= room - new_tokens:
        raise DataError(
            f"The prompt {text[:40]!r} has {len(ids)} tokens; to be verified it needs at least 2, "
            f"and at most {room - new_tokens} with {new_tokens} new ones."
        )
    return Prompt(ids, new_tokens)


def _token_ids(tokenizer: TextTokenizer, texts: Sequence[str], answers: Answers) -> Check:
    ours = [[*tokenizer.bos_ids, *ids.tolist()] for ids in tokenizer.encode_batch(texts)]
    differing = [i for i, ids in enumerate(ours) if ids != answers.ids[i]]
    example = f"; the first: {texts[differing[0]][:60]!r}" if differing else ""
    detail = f"{len(texts) - len(differing)} of {len(texts)} texts equal{example}"
    return Check("texts with other token ids", len(differing), 0, detail)


def _our_logits(model: MultiTokenModel, prompts: Sequence[Prompt], answers: Answers) -> OurLogits:
    states = {key: _states(model, ids) for key, ids in answers.sequences.items()}
    most = max(depth for _, depth in answers.sequences)
    trunk = []
    for index in range(len(prompts)):
        # the prompt's last rows, and the rows that chose the new tokens
        hidden_SD = states[index, most].post_norm[0]
        start = len(prompts[index].ids) - len(answers.trunk[index])
        trunk.append(model.unembed(hidden_SD[start:-1]))
    rounds = []
    for one in answers.rounds:
        key = one.prompt, one.depth
        rounds.append(_drafted_logits(model, answers.sequences[key], states[key], one))
    return OurLogits(trunk, rounds)


def _trunk_logits(ours: OurLogits, rounded: OurLogits, answers: Answers) -> Check:
    found, moved, spread, rows = 0.0, 0.0, 0.0, 0
    for index, theirs_RV in answers.trunk.items():
        ours_RV = ours.trunk[index][: len(theirs_RV)]
        found = _worst(found, ours_RV - torch.from_numpy(np.array(theirs_RV)))
        moved = _worst(moved, ours_RV - rounded.trunk[index][: len(theirs_RV)])
        spread = max(spread, float(ours_RV.std()))
        rows += len(theirs_RV)
    detail = f"{rows} positions; our logits have a deviation of {spread:.2f}"
    return Check("largest logit difference, trunk", found, _limit(moved), detail)


def _head_logits(
    ours: OurLogits, rounded: OurLogits, answers: Answers, depths: int, *, left: int
) -> Iterator[Check]:
    for depth in range(1, depths + 1):
        found, moved, drafts = 0.0, 0.0, 0
        for one, ours_V, rounded_V in zip(answers.rounds, ours.rounds, rounded.rounds, strict=True):
            if one.depth == depth:
                found = _worst(found, ours_V - torch.from_numpy(np.array(one.logits_V)))
                moved = _worst(moved, ours_V - rounded_V)
                drafts += 1
        detail = f"{drafts} drafts" + (", each behind the engine's own" if depth > 1 else "")
        if depth == depths and left:
            detail += f"; depth {depth + 1} is not run: llama.cpp's hy_v3 is exact to {depths}"
        if not drafts:
            found, detail = math.nan, "no draft was made; give more new tokens"
        yield Check(f"largest logit difference, depth {depth}", found, _limit(moved), detail)


def _limit(moved: float) -> float:
    return max(LOGIT_LIMIT, ROUNDING_FACTOR * moved)


def _states(model: MultiTokenModel, ids: Sequence[int]) -> TrunkStates:
    reader = build_reader(model.trunk, 1, len(ids))
    return reader.read(torch.tensor([ids]), torch.arange(len(ids))[None])


def _drafted_logits(
    model: MultiTokenModel, ids: Sequence[int], states: TrunkStates, one: Round
) -> Tensor:
    """Our logits ``[V]`` of a round's last draft, behind the engine's drafts before it."""
    assert isinstance(model.heads, SequentialHeads)
    capacity = len(ids) + one.depth
    vocabulary = DraftVocabulary(model)
    drafter = TrunkFedDrafter(model, model.heads, vocabulary, 1, capacity, PLAIN_STEPS)
    places_BS = torch.arange(len(ids))[None]
    read = one.known - 1  # all certain tokens but the last
    drafter.follow(states, torch.where(places_BS < read, places_BS, HOLE), read)
    logits: list[Tensor] = []

    def as_the_engine(logits_BV: Tensor) -> Tensor:
        logits.append(logits_BV[0])
        return torch.tensor([one.drafts[len(logits) - 1]])

    drafter.draft([list(ids[: one.known])], one.depth, as_the_engine)
    return logits[-1]


def _greedy_text(
    prompts: Sequence[Prompt], ours: OurLogits, answers: Answers, depths: int, limit: float
) -> Check:
    """Tokens of the engine that are not ours, where the two are more than rounding apart."""
    wrong = ties = identical = tokens = 0
    for index, prompt in enumerate(prompts):
        theirs_N = torch.tensor(answers.sequences[index, depths][len(prompt.ids) :])
        logits_NV = ours.trunk[index][-len(theirs_N) :]
        behind_N = logits_NV.amax(dim=1) - logits_NV.gather(1, theirs_N[:, None])[:, 0]
        is_near_N = behind_N <= 2 * limit  # of two logits each may be off by the limit
        is_other_N = logits_NV.argmax(dim=1) != theirs_N
        wrong += int((is_other_N & ~is_near_N).sum())
        ties += int((is_other_N & is_near_N).sum())
        identical += not bool(is_other_N.any())
        tokens += len(theirs_N)
    detail = f"{identical} of {len(prompts)} texts are our greedy text; {tokens} tokens"
    if ties:
        detail += f", {ties} of them other by less than twice the limit"
    if depths:
        pairs = [pair for i in range(len(prompts)) for pair in answers.counts[i, depths]]
        rejected = sum(looked_at - taken for looked_at, taken in pairs)
        detail += f"; {rejected} drafts rejected on the way"
    return Check("tokens that are not our greedy ones", wrong, 0, detail)


def _acceptance(
    model: MultiTokenModel,
    prompts: Sequence[Prompt],
    answers: Answers,
    depths: int,
) -> Iterator[Check]:
    """Drafts taken: by the engine, and by us where we draft in its context."""
    if not depths:
        return
    assert model.heads is not None
    trained_in = model.heads.shape
    model.heads.shape = replace(trained_in, context="trunk")
    try:
        ours = [(0, 0)] * depths
        for prompt in prompts:
            _, (figures,) = generate_many(
                model, [prompt.ids], max_new_tokens=prompt.new_tokens, speculative=depths
            )
            pairs = list(zip(figures.drafted, figures.accepted, strict=True))[:depths]
            ours = [(a + c, b + d) for (a, b), (c, d) in zip(ours, pairs, strict=True)]
    finally:
        model.heads.shape = trained_in
    rounds = sum(answers.counts[i, depths][0][0] for i in range(len(prompts)))
    for depth in range(depths):
        taken = sum(answers.counts[i, depths][depth][1] for i in range(len(prompts)))
        yield acceptance_check(depth + 1, (rounds, taken), (ours[0][0], ours[depth][1]))


def acceptance_check(depth: int, theirs: tuple[int, int], ours: tuple[int, int]) -> Check:
    """Compare in how many rounds of drafting the draft of a depth was taken.

    Args:
        theirs: rounds of the engine, and how many of them took it.
        ours: the same of wmtp, whose rounds are fewer: a few go without drafts to be timed.

    Example:
        Half of 100 against 60 of 100: the difference of such shares deviates by 0.0704.

        >>> check = acceptance_check(1, (100, 50), (100, 60))
        >>> round(check.found, 4), round(check.limit, 4)
        (0.1, 0.2111)
    """
    (rounds, taken), (our_rounds, our_taken) = theirs, ours
    detail = f"llama.cpp {taken} of {rounds} rounds, wmtp {our_taken} of {our_rounds}"
    name = f"difference in drafts taken, depth {depth}"
    if not rounds or not our_rounds:
        return Check(name, math.nan, LEAST_ACCEPTANCE_LIMIT, f"{detail}; give more new tokens")
    found = abs(taken / rounds - our_taken / our_rounds)
    together = (taken + our_taken) / (rounds + our_rounds)
    error = math.sqrt(together * (1 - together) * (1 / rounds + 1 / our_rounds))
    return Check(name, found, max(LEAST_ACCEPTANCE_LIMIT, STANDARD_ERRORS * error), detail)


def _worst(so_far: float, difference: Tensor) -> float:
    largest = float(difference.abs().max())  # NaN where a logit is NaN
    return largest if math.isnan(largest) or largest > so_far else so_far
