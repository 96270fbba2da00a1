"""Decoding, side by side in one process: plain, with the heads' drafts, and by transformers.

    python benchmarks/decode.py --model runs/NAME/final --prompts datasets/mbpp_small.jsonl
    python benchmarks/decode.py --model runs/NAME/final --prompts mbpp.jsonl --skip 10  # test split

The model is prepared as ``wmtp generate`` does: matrices packed where that is possible, drafts from
its draft vocabulary; for comparison also without packing, and with drafts from all tokens. Each way
continues the same prompts greedily by the same number of tokens, in turns, so that a busy machine
is busy for each; the figure is the least time over the rounds of each prompt, summed. Every way's
text is compared with plain decoding's. Also printed: what passes over 1 to 8 tokens cost, what
rounds with each number of drafts cost, and the least time in which the machine could read the
weights once per token.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from wmtp.data.tokenizer import TextTokenizer
from wmtp.model.decoding.decoder import Decoder
from wmtp.model.decoding.draft_length import Speculative
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary, load_draft_vocabulary
from wmtp.model.generate import GREEDY, Figures, generate_many
from wmtp.model.hf_layout import load_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.packing import PackedLinear, pack_for_decoding

Way = Callable[[list[int]], tuple[list[int], Figures | None]]


def main() -> None:
    """Read the command line, measure, print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with text or MBPP rows")
    parser.add_argument("--count", type=int, default=8, help="prompts to take")
    parser.add_argument("--skip", type=int, default=0, help="prompts to leave out before")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also with compiled steps")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = TextTokenizer.load(given.model)
    model = pack_for_decoding(load_model(given.model).eval())
    vocabulary = load_draft_vocabulary(given.model, model)
    prompts = [
        [*tokenizer.bos_ids, *tokenizer.encode(text)]
        for text in read_prompts(given.prompts, given.skip, given.count)
    ]
    ways = own_ways(model, vocabulary, given.new_tokens)
    if given.compile:
        ways |= {
            f"{name}, compiled": way
            for name, way in own_ways(model, vocabulary, given.new_tokens, compiled=True).items()
        }
    plain = load_model(given.model, trunk_only=True).eval()
    ways["plain, not packed"] = one_way(plain, 0, None, given.new_tokens)
    if not given.without_transformers:
        ways |= foreign_ways(given.model, given.new_tokens)
    seconds, texts, figures = measure(ways, prompts, given.rounds)
    tokens = sum(map(len, texts["plain"]))
    print(f"\n{date.today()}, {given.threads} threads, {len(prompts)} prompts, {tokens} tokens, "
          f"least of {given.rounds} rounds\n")  # fmt: skip
    print_ways(seconds, texts, figures, tokens)
    print_costs(model, prompts[0], seconds["plain"] / tokens)
    print_drafting(model, vocabulary, prompts[0])


def read_prompts(file: Path, skip: int, count: int) -> list[str]:
    """Beginnings of the rows' texts: of an MBPP row the problem and its first test."""
    prompts = []
    for line in file.read_text().splitlines()[skip : skip + count]:
        row = json.loads(line)
        text = row.get("prompt") or row.get("text") or row["completion"]
        test = (row.get("test_list") or [""])[0]
        prompts.append(f'"""\n{text}\n{test}\n"""\n' if test else text)
    return prompts


def own_ways(
    model: MultiTokenModel, vocabulary: DraftVocabulary, new_tokens: int, *, compiled: bool = False
) -> dict[str, Way]:
    """Plain, each number of drafts, and as many as pay."""
    ways = {"plain": one_way(model, 0, None, new_tokens, compiled)}
    counts: list[Speculative] = [*range(1, model.horizon), "auto"] if model.horizon > 1 else []
    for count in counts:
        ways[f"drafts: {count}"] = one_way(model, count, vocabulary, new_tokens, compiled)
    if counts and vocabulary.size < model.trunk_shape.vocab_size:
        ways["drafts: auto, from all tokens"] = one_way(model, "auto", None, new_tokens, compiled)
    return ways


def one_way(
    model: MultiTokenModel,
    speculative: Speculative,
    vocabulary: DraftVocabulary | None,
    new_tokens: int,
    compiled: bool = False,
) -> Way:
    """Our own decoding."""

    def run(prompt: list[int]) -> tuple[list[int], Figures | None]:
        (text,), (figures,) = generate_many(
            model,
            [prompt],
            max_new_tokens=new_tokens,
            speculative=speculative,
            draft_vocabulary=vocabulary,
            compiled=compiled,
        )
        return text.ids[text.prompt :], figures

    return run


def foreign_ways(directory: Path, new_tokens: int) -> dict[str, Way]:
    """``transformers.generate`` of the trunk, with each of its caches."""
    import transformers

    transformers.logging.set_verbosity_error()
    trunk = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    trunk.generation_config.eos_token_id = None

    def way(cache: str) -> Way:
        def run(prompt: list[int]) -> tuple[list[int], Figures | None]:
            ids = torch.tensor([prompt])
            options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
            if cache == "static":
                options["cache_implementation"] = "static"
                options["disable_compile"] = True
            mask = torch.ones_like(ids)
            out = trunk.generate(input_ids=ids, attention_mask=mask, **options)
            return out[0, len(prompt) :].tolist(), None

        return run

    return {f"transformers, {cache} cache": way(cache) for cache in ("dynamic", "static")}


def measure(
    ways: dict[str, Way], prompts: list[list[int]], rounds: int
) -> tuple[dict[str, float], dict[str, list[list[int]]], dict[str, list[Figures | None]]]:
    """Least seconds of each way over all prompts, its texts and its figures."""
    least = {name: [float("inf")] * len(prompts) for name in ways}
    texts: dict[str, list[list[int]]] = {name: [[]] * len(prompts) for name in ways}
    figures: dict[str, list[Figures | None]] = {name: [None] * len(prompts) for name in ways}
    for way in ways.values():
        way(prompts[0])  # warms up, and compiles
    for _ in range(rounds):
        for index, prompt in enumerate(prompts):
            for name, way in ways.items():
                started = time.perf_counter()
                texts[name][index], figures[name][index] = way(prompt)
                least[name][index] = min(least[name][index], time.perf_counter() - started)
    return {name: sum(seconds) for name, seconds in least.items()}, texts, figures


def print_ways(
    seconds: dict[str, float],
    texts: dict[str, list[list[int]]],
    figures: dict[str, list[Figures | None]],
    tokens: int,
) -> None:
    """One row for each way."""
    print(
        "| way | tokens/s | over plain | same text | tokens a pass | accepted at depth 1, 2, ... |"
    )
    print("|---|---|---|---|---|---|")
    for name, mine in seconds.items():
        same = sum(a == b for a, b in zip(texts[name], texts["plain"], strict=True))
        known = [one for one in figures[name] if one is not None and any(one.drafted)]
        passes = sum(one.text_passes for one in known)
        a_pass = f"{sum(one.decoding_tokens for one in known) / passes:.2f}" if passes else ""
        accepted = [sum(depth) for depth in zip(*(one.accepted for one in known), strict=True)]
        drafted = [sum(depth) for depth in zip(*(one.drafted for one in known), strict=True)]
        shares = [f"{a / d:.2f}" for a, d in zip(accepted, drafted, strict=True) if d]
        print(f"| {name} | {tokens / mine:.1f} | {seconds['plain'] / mine:.2f} "
              f"| {same} of {len(texts[name])} | {a_pass} | {' '.join(shares)} |")  # fmt: skip


@torch.no_grad()
def print_costs(model: MultiTokenModel, prompt: list[int], plain_seconds: float) -> None:
    """What a pass over several tokens costs, and what reading the weights costs at least."""
    cache = model.new_cache()
    model.next_token_hidden(torch.tensor([prompt]), cache=cache)
    length = cache.length
    costs = []
    for count in range(1, 9):
        tokens = torch.tensor([(prompt * 8)[:count]])
        best = float("inf")
        for _ in range(7):
            started = time.perf_counter()
            hidden = model.next_token_hidden(tokens, cache=cache)
            model.unembed(hidden).argmax(-1).tolist()
            best = min(best, time.perf_counter() - started)
            cache.crop(length)
        costs.append(best)
    print("\n| tokens in a pass | milliseconds | over one |\n|---|---|---|")
    for count, cost in enumerate(costs, start=1):
        print(f"| {count} | {cost * 1e3:.1f} | {cost / costs[0]:.2f} |")
    size = read_bytes(model)
    limit = size / bandwidth()
    print(f"\nThe trunk's {size / 1e9:.2f} GB are read in {limit * 1e3:.1f} ms at best: plain "
          f"decoding reaches {limit / plain_seconds:.0%} of that limit.")  # fmt: skip


@torch.no_grad()
def print_drafting(model: MultiTokenModel, vocabulary: DraftVocabulary, prompt: list[int]) -> None:
    """What a round with each number of drafts costs: so many tokens must it give to pay."""
    if model.horizon == 1:
        return
    rounds: dict[int, list[float]] = {}
    for count in range(model.horizon):
        decoder = Decoder(
            model,
            [prompt],
            max_new_tokens=60,
            sampling=GREEDY,
            stop_ids=(),
            speculative=count,
            vocabulary=vocabulary,
        )
        decoder.round()
        while not decoder.done:
            before, plainly = decoder.figures.decoding_seconds, decoder.figures.drafted[:1]
            decoder.round()
            if count == 0 or decoder.figures.drafted[:1] != plainly:
                took = decoder.figures.decoding_seconds - before
                rounds.setdefault(count, []).append(took)
    plain = min(rounds[0])
    print(f"\n| drafts, from {vocabulary.size:,} tokens | milliseconds a round | over none |")
    print("|---|---|---|")
    for count, seconds in rounds.items():
        print(f"| {count} | {min(seconds) * 1e3:.1f} | {min(seconds) / plain:.2f} |")


def read_bytes(model: MultiTokenModel) -> int:
    """Bytes of the trunk's parameters that a token reads; of an untied embedding it is one row."""
    tied = model.trunk.embedding_VD is model.trunk.unembedding_VD
    plain = sum(
        p.numel() * p.element_size()
        for p in model.trunk.parameters()
        if tied or p is not model.trunk.embedding_VD
    )
    packed = sum(m.num_bytes for m in model.trunk.modules() if isinstance(m, PackedLinear))
    return plain + packed


def bandwidth() -> float:
    """Bytes a second of a product of a large matrix with a vector, which is nothing but reading."""
    matrix, vector = torch.ones(16384, 8192), torch.ones(8192)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        torch.mv(matrix, vector)
        best = min(best, time.perf_counter() - started)
    return matrix.numel() * matrix.element_size() / best


if __name__ == "__main__":
    main()
