"""``transformers`` itself runs an exported directory, and its answers are held against ours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import MtpModel

from wmtp.data.tokenizer import TextTokenizer
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.drafters import build_drafter
from wmtp.model.decoding.readers import build_reader
from wmtp.model.heads.sequential import SequentialHeads
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import StoredConfig
from wmtp.model.transformers_calls import quiet_transformers, read_network, told_plainly
from wmtp.verify.check import Check
from wmtp.verify.ours import (
    Ours,
    check_as_served,
    check_texts,
    check_token_ids,
    check_trunk,
    greedy_texts,
    logits_difference,
    prompt_ids,
    trunk_logits,
    worst,
)
from wmtp.verify.prompts import strings_to_tokenize
from wmtp.verify.stored import compare_stored_numbers, open_export

PROBLEM: Final = "'{}' cannot be run by transformers"

LIMIT: Final = 1e-5
"""Of logits that both compute in float32 from the same numbers."""

ACCEPTANCE_LIMIT: Final = 0.02
"""Of the share of drafts accepted at a depth, where transformers drafts as the heads were trained:
the same but for ties."""


@dataclass(frozen=True)
class Round:
    """What transformers drafted at one time.

    Attributes:
        text: the tokens it knew, the last of which its trunk had not read.
        drafts: the tokens that it drafted, one for each depth.
        logits_KV: of each depth, where it drafted.
    """

    text: list[int]
    drafts: list[int]
    logits_KV: Tensor


def verify_hugging_face(
    model_directory: Path, exported: Path, prompts: Sequence[str], *, new_tokens: int = 32
) -> list[Check]:
    """Compare a model with what transformers makes of its export.

    Both compute in float32 from the numbers that are stored, so that the limits are those of
    float32 for every dtype; an export of 16 bits is run as transformers loads it, too.

    Args:
        model_directory: what was exported.
        exported: the directory that ``wmtp export --to hf`` wrote.
        prompts: texts to continue.
        new_tokens: that are added to each.

    Returns:
        Stored numbers, token ids, logits of the trunk and of each head as transformers chains
        them, greedy text without and with drafts, and drafts accepted. An export with names of
        ``mtp_llama`` is compared tensor by tensor only: transformers has no such model.

    Raises:
        CheckpointError: the export is damaged or another model's, or transformers cannot load it.
        DataError: a prompt is too short or too long, or there is no tokenizer.
    """
    model, theirs = open_export(model_directory, exported)
    if theirs.layout == "mtp_llama":
        return [compare_stored_numbers(model_directory, exported, model, theirs)[0]]
    drafts = model.horizon > 1 and isinstance(model.heads, SequentialHeads) and theirs.kind != "hf"
    tokenizer = TextTokenizer.load(model_directory)
    ids = prompt_ids(model, tokenizer, prompts, new_tokens, least=max(1, model.horizon - 1))
    unrounded = [trunk_logits(model, one) for one in ids]
    stored, dtype = compare_stored_numbers(model_directory, exported, model, theirs)
    ours = Ours(model, tokenizer, ids, greedy_texts(model, ids, new_tokens), new_tokens, unrounded)

    network, _ = read_network(AutoModelForCausalLM, exported, PROBLEM.format(exported))
    network.eval()
    network.generation_config.eos_token_id = None  # both go on past the end of a text
    checks = [
        stored,
        check_token_ids(tokenizer, _token_ids(exported)),
        _check_trunk_logits(ours, network, exported),
        check_texts("greedy texts that differ", ours, _generate(network, ours, exported), LIMIT),
    ]
    if drafts:
        checks += _check_heads(ours, network, exported, theirs)
    if dtype != torch.float32:
        del network
        checks.append(_check_as_served(ours, exported, dtype))
    return checks


@contextmanager
def _engine(exported: Path) -> Iterator[None]:
    """Code of transformers runs inside: quietly, and what fails there is one line."""
    with quiet_transformers(), told_plainly(PROBLEM.format(exported)):
        yield


def _token_ids(exported: Path) -> list[list[int]]:
    with _engine(exported):
        tokenizer = AutoTokenizer.from_pretrained(
            exported, trust_remote_code=False, local_files_only=True
        )
        # a literal <|endoftext|> is text for wmtp
        encoded = tokenizer(strings_to_tokenize(), split_special_tokens=True)
    found: list[list[int]] = encoded["input_ids"]
    return found


@torch.no_grad()
def _check_trunk_logits(ours: Ours, network: Any, exported: Path) -> Check:
    mine = [trunk_logits(ours.model, text) for text in ours.texts]
    with _engine(exported):
        found = [network(torch.tensor([text])).logits[0] for text in ours.texts]
    check = check_trunk("trunk's logits", mine, found, LIMIT)
    return replace(check, detail=f"{check.detail}; transformers {version('transformers')}")


@torch.no_grad()
def _check_as_served(ours: Ours, exported: Path, dtype: torch.dtype) -> Check:
    network, _ = read_network(AutoModelForCausalLM, exported, PROBLEM.format(exported), dtype=dtype)
    network.eval()
    with _engine(exported):
        found = [network(torch.tensor([one])).logits[0].float() for one in ours.prompts]
    return check_as_served(ours, found, dtype)


def _generate(network: Any, ours: Ours, exported: Path, **options: Any) -> list[list[int]]:
    """Greedy texts, one after the other."""
    texts: list[list[int]] = []
    for prompt in ours.prompts:
        tokens_BS = torch.tensor([prompt])
        with _engine(exported):
            found = network.generate(
                tokens_BS,
                attention_mask=torch.ones_like(tokens_BS),
                max_new_tokens=ours.new_tokens,
                do_sample=False,
                **options,
            )
        texts.append(found[0].tolist())
    return texts


def _check_heads(ours: Ours, network: Any, exported: Path, theirs: StoredConfig) -> list[Check]:
    layers = ours.model.trunk_shape.num_layers
    numbers = "|".join(str(layers + k) for k in range(ours.model.horizon - 1))
    network._keys_to_ignore_on_load_unexpected.add(rf"model\.layers\.({numbers})\.")
    with recorded_drafts() as rounds:
        texts = _generate(network, ours, exported, use_mtp=True)
    heads, gain = theirs.heads, theirs.trunk.final_norm_gain
    as_trained = heads.context != "trunk" and (heads.hidden == "post_norm" or not gain)
    return [
        *_check_head_logits(ours.model, rounds),
        check_texts("greedy texts with drafts that differ", ours, texts, LIMIT),
        _check_acceptance(ours, rounds, texts, as_trained=as_trained),
    ]


@contextmanager
def recorded_drafts() -> Iterator[list[Round]]:
    """Note what ``generate(use_mtp=True)`` drafts inside the block, and change nothing of it."""
    rounds: list[Round] = []
    forward = MtpModel.forward

    def noting(self: Any, *args: Any, full_input_ids: Tensor, **options: Any) -> Any:
        found = forward(self, *args, full_input_ids=full_input_ids, **options)
        text = full_input_ids[0].tolist()
        rounds.append(Round(text, found[0][0].tolist(), found[1][0].float()))
        return found

    MtpModel.forward = noting
    try:
        yield rounds
    finally:
        MtpModel.forward = forward


@torch.no_grad()
def _check_head_logits(model: MultiTokenModel, rounds: Sequence[Round]) -> list[Check]:
    """Run our heads as transformers chains them, over the same text and the same drafts."""
    heads = model.heads
    assert isinstance(heads, SequentialHeads)
    trained = heads.shape
    heads.shape = replace(trained, hidden="post_norm", context="chained")
    try:
        pairs = [(_chained_logits(model, one), one.logits_KV) for one in rounds]
    finally:
        heads.shape = trained
    detail = f"{len(rounds)} times drafted, rejections between"
    return [
        Check(
            f"head {k + 1}'s logits",
            worst([logits_difference(mine_KV[k], found_KV[k]) for mine_KV, found_KV in pairs]),
            LIMIT,
            detail,
        )
        for k in range(model.horizon - 1)
    ]


def _chained_logits(model: MultiTokenModel, one: Round) -> Tensor:
    """Logits ``[K, V]`` of all heads at the last row, which reads the drafts in turn."""
    horizon, stop = model.horizon, len(one.text) - 1
    tokens = torch.tensor([[*one.text, *one.drafts]])
    targets_BSH = tokens[:, 1 : stop + horizon].unfold(1, horizon, 1)
    hidden = model(tokens[:, :stop], targets_BSH)
    return model.unembed(torch.stack([of_head_BSD[0, -1] for of_head_BSD in hidden[1:]]))


def _check_acceptance(
    ours: Ours, rounds: Sequence[Round], texts: Sequence[Sequence[int]], *, as_trained: bool
) -> Check:
    """Shares of drafts accepted, transformers' beside those of wmtp's own drafter in its places."""
    depths = ours.model.horizon - 1
    placed = [
        (one, next(list(text) for text in texts if list(text[: len(one.text)]) == one.text))
        for one in rounds
    ]
    theirs = _acceptance([(one.text, one.drafts, text) for one, text in placed], depths)
    own = [
        (one.text, drafts, list(text))
        for text in texts
        for one, drafts in _own_drafts(
            ours.model, text, [one for one, its_text in placed if its_text == list(text)]
        )
    ]
    mine = _acceptance(own, depths)
    both = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
    found = max((abs(a - b) for a, b in both), default=0.0)
    detail = f"depth 1, 2, ...: {_shares(theirs)}; wmtp's own: {_shares(mine)}"
    if not as_trained:
        detail += "; transformers drafts in another way than these heads were trained for"
    return Check("share of drafts accepted", found, ACCEPTANCE_LIMIT if as_trained else 1.0, detail)


@torch.no_grad()
def _own_drafts(
    model: MultiTokenModel, text: Sequence[int], rounds: Sequence[Round]
) -> list[tuple[Round, list[int]]]:
    """What wmtp's drafter, in the context that the heads were trained in, drafts in each place."""
    drafter = build_drafter(model, DraftVocabulary(model), 1, len(text) + model.horizon)
    assert drafter is not None
    tokens_BS, positions_BS = torch.tensor([list(text)]), torch.arange(len(text))[None]
    reader = build_reader(model.trunk, 1, len(text))
    drafter.follow(reader.read(tokens_BS, positions_BS), positions_BS, len(text))

    def likeliest(logits_BV: Tensor) -> Tensor:
        return logits_BV.argmax(dim=-1)

    return [
        (one, [int(draft) for draft in drafter.draft([one.text], model.horizon - 1, likeliest)])
        for one in rounds
    ]


def _acceptance(
    places: Sequence[tuple[list[int], list[int], list[int]]], depths: int
) -> list[float | None]:
    """For each depth the share of drafts that the text took, of those whose forerunners it took.

    Args:
        places: what was known, what was drafted after it, and the whole text.
        depths: how many drafts each place has.
    """
    drafted, accepted = [0] * depths, [0] * depths
    for known, drafts, text in places:
        for depth, (draft, taken) in enumerate(zip(drafts, text[len(known) :], strict=False)):
            drafted[depth] += 1
            accepted[depth] += draft == taken
            if draft != taken:
                break
    return [a / d if d else None for a, d in zip(accepted, drafted, strict=True)]


def _shares(shares: Sequence[float | None]) -> str:
    return " ".join("-" if share is None else f"{share:.2f}" for share in shares)
