"""How well heads draft in the context they were trained in, and in the other one.

    python benchmarks/head_contexts.py            # some minutes on two cores

Small models learn the bytes of Python's own library with sequential heads in each context of
``model.heads.context``; then each drafts as wmtp, transformers and vLLM do (``chained``) and as
llama.cpp does (``trunk``), on prompts of files that it has not seen. The same seeds, steps and
tokens for all.
"""

import argparse
from dataclasses import replace
from datetime import date
from typing import get_args

import torch
from greedy_equality import DRAFTS, library_text, small_model, some_prompts

from wmtp.model.generate import generate_many
from wmtp.model.heads import Context
from wmtp.model.multi_token import MultiTokenModel

DRAFTED = ("chained", "trunk")


def main() -> None:
    """Read the command line, train, draft, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=128)
    given = parser.parse_args()
    ids = list(library_text().encode())
    held_out = len(ids) // 10
    prompts = some_prompts(ids[:held_out], given.prompts)
    print(f"{date.today()}, {given.seeds} seeds, {given.steps} steps, {given.prompts} prompts of "
          f"{given.new_tokens} tokens\n")  # fmt: skip
    print("| trained in | drafts in | tokens a pass, each seed | accepted at depth 1, 2, 3 |")
    print("|---|---|---|---|")
    for context in get_args(Context):
        models = [
            small_model("sequential", ids[held_out:], given.steps, context=context, seed=seed)
            for seed in range(given.seeds)
        ]
        for drafted in DRAFTED:
            rates, accepted, looked_at = [], torch.zeros(DRAFTS), torch.zeros(DRAFTS)
            for model in models:
                draft_in(model, drafted)
                _, figures = generate_many(
                    model, prompts, max_new_tokens=given.new_tokens, speculative=DRAFTS
                )
                rates.append(figures[0].tokens_per_pass)
                accepted += torch.tensor(figures[0].accepted)
                looked_at += torch.tensor(figures[0].drafted)
            each = " ".join(f"{rate:.2f}" for rate in rates)
            shares = " ".join(f"{share:.2f}" for share in (accepted / looked_at).tolist())
            print(f"| {context} | {drafted} | {each} | {shares} |", flush=True)


def draft_in(model: MultiTokenModel, context: str) -> None:
    """Let a model draft in a context that may not be the one of its training."""
    assert model.heads is not None
    model.heads.shape = replace(model.heads.shape, context=context)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
