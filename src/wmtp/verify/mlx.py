"""``mlx_lm`` itself runs an exported directory, on MLX's CPU backend, held against ours."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import CheckpointError, ConfigError
from wmtp.export.folder import exported_for
from wmtp.export.mlx import mlx_name
from wmtp.model.stored_config import read_json
from wmtp.model.stored_tensors import CONFIG_NAME
from wmtp.verify import mlx_program
from wmtp.verify.check import Check
from wmtp.verify.ours import (
    Ours,
    check_as_served,
    check_texts,
    check_token_ids,
    check_trunk,
    greedy_texts,
    prompt_ids,
    trunk_logits,
)
from wmtp.verify.prompts import strings_to_tokenize
from wmtp.verify.stored import compare_stored_numbers, open_export

LIMIT: Final = 1e-4
"""Of logits that both compute in float32 from the same numbers."""

INSTALL: Final = (
    "Install it there: pip install mlx-lm, on Linux with 'mlx[cpu]' too; or name a Python that has "
    "it with --python."
)


def verify_mlx(
    model_directory: Path,
    exported: Path,
    prompts: Sequence[str],
    *,
    new_tokens: int = 32,
    python: Path | None = None,
) -> list[Check]:
    """Compare a model's trunk with what mlx_lm makes of its export.

    As with transformers, both compute in float32 from the numbers that are stored, and an export
    of 16 bits is run as mlx_lm loads it, too.

    Args:
        model_directory: what was exported.
        exported: the directory that ``wmtp export --to mlx`` wrote.
        prompts: texts to continue.
        new_tokens: that are added to each.
        python: of an environment with mlx_lm; None for this one.

    Returns:
        Stored numbers, token ids, logits and greedy text.

    Raises:
        CheckpointError: the export is damaged or another model's, or mlx_lm cannot run it.
        ConfigError: that Python has no MLX, or cannot be started.
        DataError: a prompt is too short or too long, or there is no tokenizer.
    """
    family = str(read_json(exported, exported / CONFIG_NAME).get("model_type"))
    is_for_mlx = exported_for(exported) == "mlx"  # an ordinary trunk-only export will do as well

    def rename(name: str) -> str:
        return mlx_name(name, family) if is_for_mlx else name

    model, theirs = open_export(model_directory, exported, rename)
    if theirs.heads.horizon > 1:
        raise CheckpointError(
            f"'{exported}' holds heads, which mlx_lm refuses. Export with --to mlx or --trunk-only."
        )
    tokenizer = TextTokenizer.load(model_directory)
    ids = prompt_ids(model, tokenizer, prompts, new_tokens)
    unrounded = [trunk_logits(model, one) for one in ids]
    stored, dtype = compare_stored_numbers(model_directory, exported, model, theirs, rename)
    ours = Ours(model, tokenizer, ids, greedy_texts(model, ids, new_tokens), new_tokens, unrounded)
    request = {
        "model": str(exported.resolve()),
        "strings": strings_to_tokenize(),
        "rows": ours.texts,
        "prompts": ours.prompts,
        "new_tokens": new_tokens,
        "as_served": dtype != torch.float32,
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = _ask(python, Path(folder), request, f"'{exported}' cannot be run by mlx_lm")
        rows = _read_logits(Path(folder), "rows", len(ours.texts))
        mine = [trunk_logits(model, text) for text in ours.texts]
        trunk = check_trunk("trunk's logits", mine, rows, LIMIT)
        versions = ", ".join(f"{name} {number}" for name, number in answer["versions"].items())
        checks = [
            stored,
            check_token_ids(tokenizer, answer["ids"]),
            replace(trunk, detail=f"{trunk.detail}; {versions}"),
            check_texts("greedy texts that differ", ours, answer["texts"], LIMIT),
        ]
        if dtype != torch.float32:
            served = _read_logits(Path(folder), "served", len(ids))
            checks.append(check_as_served(ours, served, dtype))
    return checks


def _ask(
    python: Path | None, folder: Path, request: dict[str, object], problem: str
) -> dict[str, Any]:
    """Let the program answer, in a folder of its own.

    Raises:
        CheckpointError: it failed; shows its last line.
        ConfigError: it could not be started, or found no MLX.
    """
    program, question = folder / "program.py", folder / "request.json"
    shutil.copyfile(mlx_program.__file__, program)  # its own folder has a mlx.py
    question.write_text(json.dumps(request), encoding="utf-8")
    interpreter = sys.executable if python is None else str(python)
    try:
        ran = subprocess.run(
            [interpreter, str(program), str(question)],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"--python is '{python}', which cannot be started: {error.strerror or error}."
        ) from error
    said = _last_error(ran.stderr)
    if ran.returncode == mlx_program.NOT_INSTALLED:
        raise ConfigError(f"MLX is not installed for {interpreter} ({said}). {INSTALL}")
    if ran.returncode != 0:
        raise CheckpointError(f"{problem} ({said}).")
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return answer


def _last_error(said: str) -> str:
    """What a traceback says at its end, in one short line."""
    lines = said.strip().splitlines() or ["no word"]
    begins = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception): ", line)]
    text = " ".join(" ".join(lines[begins[-1] if begins else -1 :]).split())
    return text[:200].rstrip(".")


def _read_logits(folder: Path, name: str, count: int) -> list[Tensor]:
    return [torch.from_numpy(np.load(folder / f"{name}-{i}.npy")) for i in range(count)]
