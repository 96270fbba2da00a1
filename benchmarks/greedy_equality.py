"""Greedy texts with drafts are those without: 200 prompts of 512 tokens for each kind of heads.

    python benchmarks/greedy_equality.py                       # twenty minutes on two busy cores
    python benchmarks/greedy_equality.py --model runs/NAME/final --prompts 20

Without ``--model`` small models of every kind of heads first learn the bytes of Python's own
library for a minute, so that drafts are accepted often and not always. Each prompt is continued one
token at a time, with three drafts a pass, and with three drafts in batches of four. Where two texts
part, plain decoding is asked how far apart its two likeliest tokens were there: the promise of
``docs/decoding.md`` is kept if that was a near tie. Ends with 1 if it is not.
"""

import argparse
import random
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch.nn import functional as F

from wmtp.data.tokenizer import TextTokenizer
from wmtp.model.generate import generate_many
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import load_model
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, build_model
from wmtp.model.near_ties import near_tie

KINDS = ("sequential", "sequential, trunk-fed", "parallel", "linear")
DRAFTS = 3


@dataclass
class Found:
    """How many texts are equal, part at a near tie, or part without one."""

    equal: int = 0
    near_ties: int = 0
    wrong: int = 0
    tokens: int = 0
    passes: int = 0


def main() -> None:
    """Read the command line, decode, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model directory instead of small models")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300, help="of the small models' training")
    given = parser.parse_args()
    text = library_text()
    print(
        f"{date.today()}, {given.prompts} prompts of {given.new_tokens} tokens, {DRAFTS} drafts\n"
    )
    print("| heads | way | equal | parted at a near tie | wrong | tokens a pass |")
    print("|---|---|---|---|---|---|")
    wrong = 0
    for name in (given.model.name,) if given.model else KINDS:
        if given.model:
            model = load_model(given.model).eval()
            ids = TextTokenizer.load(given.model).encode(text[:400_000])
        else:
            ids = list(text.encode())
            model = small_model(name, ids, given.steps)
        prompts = some_prompts(ids, given.prompts)
        for way, found in compare(model, prompts, given.new_tokens).items():
            print(f"| {name} | {way} | {found.equal} | {found.near_ties} | {found.wrong} "
                  f"| {found.tokens / found.passes:.2f} |", flush=True)  # fmt: skip
            wrong += found.wrong
    sys.exit(1 if wrong else 0)


def library_text() -> str:
    """Some files of Python's own library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("[a-h]*.py")))


def small_model(
    kind: str, ids: Sequence[int], steps: int, *, context: str | None = None, seed: int = 0
) -> MultiTokenModel:
    """Two layers and four heads that have seen some bytes."""
    shape = LlamaShape(
        256, 64, 176, 2, 4, 2, 16, 1024, 10000.0, 1e-5,
        tie_embeddings=True, qk_norm=True, final_norm_gain=False,
    )  # fmt: skip
    context = context or ("trunk" if "trunk" in kind else "chained")
    heads = HeadsShape(DRAFTS + 1, kind=kind.split(",")[0], context=context)  # type: ignore[arg-type]
    model = build_model(shape, heads, seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data_T = torch.tensor(ids)
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        model.begin_step(step)
        starts = torch.randint(0, len(ids) - 140, (16, 1), generator=draws)
        x_BT = data_T[starts + torch.arange(128 + DRAFTS + 1)]
        targets_BSH = x_BT[:, 1:].unfold(1, DRAFTS + 1, 1)
        logits_BSHV = model.logits(x_BT[:, :128], targets_BSH)
        loss = F.cross_entropy(logits_BSHV.flatten(0, 2), targets_BSH.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def some_prompts(ids: Sequence[int], count: int) -> list[list[int]]:
    """Pieces of the text, of 1 to 64 tokens."""
    draws = random.Random(0)
    starts = [draws.randrange(len(ids) - 64) for _ in range(count)]
    return [list(ids[start : start + draws.randint(1, 64)]) for start in starts]


def compare(
    model: MultiTokenModel, prompts: Sequence[list[int]], new_tokens: int
) -> dict[str, Found]:
    """Texts with drafts beside those without."""
    plain = decode(model, prompts, new_tokens, 1, 0, Found())
    ways = {"one by one": Found(), "in fours": Found()}
    for rows, found in zip((1, 4), ways.values(), strict=True):
        texts = decode(model, prompts, new_tokens, rows, DRAFTS, found)
        for prompt, expected, text in zip(prompts, plain, texts, strict=True):
            place = first_difference(expected, text)
            if place is None:
                found.equal += 1
            elif is_near_tie(model, [*prompt, *expected[:place]]):
                found.near_ties += 1
            else:
                found.wrong += 1
    return ways


def decode(
    model: MultiTokenModel,
    prompts: Sequence[list[int]],
    new_tokens: int,
    rows: int,
    drafts: int,
    found: Found,
) -> list[list[int]]:
    """What is added to each prompt, so many at a time; tokens and passes are counted."""
    added = []
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        texts, figures = generate_many(model, some, max_new_tokens=new_tokens, speculative=drafts)
        added += [text.ids[text.prompt :] for text in texts]
        found.tokens += sum(one.decoding_tokens for one in figures)
        found.passes += sum(one.text_passes for one in figures)
    return added


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two texts differ."""
    if len(one) != len(other):
        return min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


@torch.no_grad()
def is_near_tie(model: MultiTokenModel, ids: Sequence[int]) -> bool:
    """Whether plain decoding could as well have gone on with its second likeliest token."""
    logits_V = model.unembed(model.next_token_hidden(torch.tensor([ids]))[0, -1]).float()
    first, second = logits_V.topk(2).values.tolist()
    return first - second <= near_tie(logits_V, model.trunk.embedding_VD.dtype)


if __name__ == "__main__":
    main()
