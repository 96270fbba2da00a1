"""Texts that a model writes while it trains: a look at what the figures mean."""

import json
from pathlib import Path

from wmtp.distributed.sharding import has_slices
from wmtp.errors import ConfigError, StorageError
from wmtp.job import Job
from wmtp.model.generate import generate
from wmtp.runtime.console import Console
from wmtp.runtime.line_file import LineFile


def check_samples(job: Job) -> None:
    """Refuse samples of a model that no process has as a whole.

    Raises:
        ConfigError: the model is in slices.
    """
    if job.settings.recipe.train.samples.prompts and has_slices(job.model):
        raise ConfigError(
            "train.samples needs the whole model in one process, but it is in slices: set "
            "devices.fsdp.enabled: false, or train.samples.prompts: []"
        )


def write_samples(job: Job, file: Path, step: int, console: Console) -> None:
    """Continue the recipe's prompts, without drawing, and append a row for each.

    Training goes on as if this had not been: nothing is drawn, and dropout is back afterwards. A
    disk that is full costs a warning and these rows.

    Args:
        job: its model is in training mode.
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
    room = job.model.trunk_shape.max_seq_length
    decoding = generate(
        job.model,
        prompt_ids[-room:],
        max_new_tokens=max_new_tokens,
        stop_ids=(tokenizer.eos_id,),
    )
    ids: list[int] = []
    while True:
        try:
            ids.append(next(decoding))
        except StopIteration as end:
            return {"text": tokenizer.decode(ids), "ended": end.value[0] == "stop_id"}
