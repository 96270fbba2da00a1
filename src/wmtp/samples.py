"""Texts that a model writes while it trains: a look at what the figures mean."""

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from wmtp.distributed.sharding import has_slices, let_go
from wmtp.errors import StorageError
from wmtp.job import Job
from wmtp.model.generate import generate
from wmtp.runtime.console import Console
from wmtp.runtime.line_file import LineFile


def write_samples(job: Job, file: Path, step: int, console: Console) -> None:
    """Continue the recipe's prompts, without drawing, and append a row for each.

    Training goes on as if this had not been: nothing is drawn, and dropout is back afterwards. A
    disk that is full costs a warning and these rows.

    Args:
        job: its model is in training mode. If that is in slices every rank must ask, else the
            first alone; the first writes.
        file: one JSON object a line: step, prompt, text, and whether the text came to its end.
        step: optimizer steps done.
        console: takes the warning.
    """
    wanted = job.settings.recipe.train.samples
    job.model.eval()
    rows = [
        {"step": step, "prompt": prompt, **continued(job, prompt, wanted.max_new_tokens)}
        for prompt in wanted.prompts
    ]
    job.model.train()
    let_go(job.model)
    if not job.ranks.is_first:
        return
    try:
        lines = LineFile(file)
        try:
            for row in rows:
                lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        finally:
            lines.close()
    except StorageError as error:
        console.warning(f"{error} Training goes on without these samples.")


def continued(job: Job, prompt: str, max_new_tokens: int) -> dict[str, str | bool]:
    """What the model adds to a prompt."""
    tokenizer = job.tokenizer
    prompt_ids = [*tokenizer.bos_ids, *tokenizer.encode(prompt)]
    prompt_ids = prompt_ids[-job.model.trunk_shape.max_seq_length :]
    if has_slices(job.model):
        ids, ended = _in_slices(job, prompt_ids, max_new_tokens)
    else:
        ids, ended = _whole(job, prompt_ids, max_new_tokens)
    return {"text": tokenizer.decode(ids), "ended": ended}


def _whole(job: Job, prompt_ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
    """Tokens that follow, and whether the text came to its end."""
    decoding = generate(
        job.model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        stop_ids=(job.tokenizer.eos_id,),
    )
    ids: list[int] = []
    while True:
        try:
            ids.append(next(decoding))
        except StopIteration as end:
            return ids, end.value[0] == "stop_id"


@torch.no_grad()
def _in_slices(job: Job, prompt_ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
    """The same where every pass gathers the blocks, and the ranks must make the same passes.

    So the first rank chooses each token for all, and what a pass costs is gathering: there is no
    cache.
    """
    model, row = job.model, list(prompt_ids)
    room = min(len(row) + max_new_tokens, model.trunk_shape.max_seq_length + 1)
    while len(row) < room:
        tokens_BS = torch.tensor([row], device=job.device.torch_device)
        logits_V = model.unembed(model.next_token_hidden(tokens_BS)[0, -1])
        token: int = job.ranks.from_first(partial(_likeliest, logits_V))
        if token == job.tokenizer.eos_id:
            return row[len(prompt_ids) :], True
        row.append(token)
    return row[len(prompt_ids) :], False


def _likeliest(logits_V: Tensor) -> int:
    return int(logits_V.argmax())
