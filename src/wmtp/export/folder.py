"""The folder that an export is written to: whole, or as it was before."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import torch

from wmtp.checkpoints.checkpoint import step_of
from wmtp.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, TextTokenizer
from wmtp.errors import ConfigError
from wmtp.model.hf_layout import StoredForm, tokenizer_files
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.durable import remove, storage_errors, sync_file, sync_folder, temporary_beside
from wmtp.untrusted import read_json

FACTS_NAME: Final = "export.json"

DtypeName = Literal["f32", "f16", "bf16"]
"""How the numbers of an export are stored."""

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


def exported_for(folder: Path) -> str | None:
    """For which engines an export was written, None if nothing says so."""
    try:
        facts = read_json(folder / FACTS_NAME)
    except (OSError, ValueError):
        return None
    return str(facts.get("to")) if isinstance(facts, dict) else None


def check_target(out: Path, model_directory: Path) -> None:
    """Refuse to replace anything but an earlier export.

    Raises:
        ConfigError: ``out`` holds something else, is the model, or has the name of a checkpoint.
    """
    if out.resolve() == model_directory.resolve():
        raise ConfigError(f"--out is '{out}', the model itself. Name another folder.")
    if step_of(out) is not None:
        raise ConfigError(f"--out is '{out}': an export there would pass for a checkpoint.")
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not (out / FACTS_NAME).is_file() and not is_empty:
        raise ConfigError(
            f"'{out}' holds something that is not an export (it has no {FACTS_NAME}), and is not "
            "replaced. Name a new folder with --out."
        )


def check_range(model: MultiTokenModel, dtype: str) -> None:
    """Refuse numbers that would become infinite.

    Raises:
        ConfigError: the model has larger numbers than the dtype; names one.
    """
    most = torch.finfo(DTYPES[dtype]).max
    for name, parameter in model.named_parameters():
        largest = float(parameter.detach().abs().max()) if parameter.numel() else 0.0
        if not largest <= most:
            raise ConfigError(
                f"--dtype is {dtype}, but {name} has numbers up to {largest:g}, and {dtype} ends "
                f"at {most:g}. Use bf16 or f32."
            )


def write_model(
    stored: StoredForm, model_directory: Path, out: Path, facts: Mapping[str, object]
) -> None:
    """Write the files of a model, its tokenizer and the facts of the export.

    Args:
        stored: what the directory will hold.
        model_directory: whose tokenizer and chat template go along.
        out: checked with ``check_target``.
        facts: for ``export.json``, by which a later export knows that it may replace this one.

    Raises:
        DataError: there is a tokenizer, and it cannot be used.
        StorageError: the disk refused.
    """
    has_tokenizer = (model_directory / TOKENIZER_FILE).is_file()
    tokenizer = TextTokenizer.load(model_directory) if has_tokenizer else None

    def fill(folder: Path) -> None:
        stored.write(folder, extra_files=tokenizer_files(model_directory))
        if tokenizer is not None and not (folder / CONFIG_FILE).is_file():
            # without it transformers guesses a class by the model's family, and builds another
            tokenizer.save(folder)
        (folder / FACTS_NAME).write_text(json.dumps(facts, indent=1) + "\n")

    _write_whole(out, fill)


def _write_whole(out: Path, fill: Callable[[Path], None]) -> None:
    temporary = temporary_beside(out)
    replaced = temporary.with_name(f"{temporary.name}-replaced")
    try:
        with storage_errors(f"'{out}' could not be written"):
            remove(temporary)
            temporary.mkdir(parents=True)
            fill(temporary)
            for path in temporary.iterdir():
                sync_file(path)
            sync_folder(temporary)
            if out.exists():
                out.rename(replaced)
            temporary.rename(out)
            sync_folder(out.parent)
            remove(replaced)
    except BaseException:
        remove(temporary)
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
