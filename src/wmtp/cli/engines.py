"""Handing a model to other engines: ``wmtp export`` and ``wmtp verify-export``."""

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import ModelDirectory, Verbose, check_model_directory, note
from wmtp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from wmtp.verify.check import Check

ENGINES = ("transformers", "mlx", "llama.cpp")
DTYPES = {
    "hf": ("f32", "f16", "bf16"),
    "mlx": ("f32", "f16", "bf16"),
    "gguf": ("f32", "f16", "bf16", "q8_0"),
}
LARGEST_PROMPTS = 1 << 20


@app.command()
def export(
    model: ModelDirectory,
    to: Annotated[str, typer.Option(help="hf, gguf or mlx.")],
    out: Annotated[Path, typer.Option(help="Folder to write; of gguf, a file.")],
    trunk_only: Annotated[
        bool, typer.Option("--trunk-only", help="Leave out the heads: an ordinary model.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="f32, f16 or bf16; of gguf also q8_0.")] = "f32",
    layout: Annotated[str, typer.Option(help="Of hf: hf, or mtp_llama for parallel heads.")] = "hf",
    verbose: Verbose = False,
) -> None:
    """Write a model for transformers, llama.cpp or MLX, with its heads where they are run."""
    if to not in DTYPES:
        raise ConfigError(f"--to is '{to}'. Use {', '.join(DTYPES)}.")
    if dtype not in DTYPES[to]:
        raise ConfigError(f"--dtype is '{dtype}', which {to} has not. Use {', '.join(DTYPES[to])}.")
    if layout not in ("hf", "mtp_llama"):
        raise ConfigError(f"--layout is '{layout}'. Use hf or mtp_llama.")
    if layout != "hf" and to != "hf":
        raise ConfigError(f"--layout is '{layout}', which is for --to hf. Leave it out.")
    check_model_directory(model)
    for line in _export(model, to, out, trunk_only, dtype, layout):
        note(f"note: {line}")
    print(out)


def _export(
    model: Path, to: str, out: Path, trunk_only: bool, dtype: str, layout: str
) -> list[str]:
    """The arguments are checked."""
    if to == "hf":
        from wmtp.export.hugging_face import export_hugging_face

        return export_hugging_face(
            model, out, dtype=dtype, trunk_only=trunk_only, layout=layout  # type: ignore[arg-type]
        )  # fmt: skip
    if to == "gguf":
        from wmtp.export.gguf import export_gguf

        return export_gguf(model, out, dtype=dtype, trunk_only=trunk_only)  # type: ignore[arg-type]
    from wmtp.export.mlx import export_mlx

    return export_mlx(model, out, dtype=dtype, trunk_only=trunk_only)  # type: ignore[arg-type]


@app.command("verify-export")
def verify_export(
    model: ModelDirectory,
    export: Annotated[Path, typer.Option("--export", help="What 'wmtp export' wrote.")],
    engine: Annotated[
        str | None,
        typer.Option(help="transformers, mlx or llama.cpp; if absent, what the export is for."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line; four of our own if absent.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens added to each prompt.")] = 32,
    python: Annotated[
        Path | None, typer.Option(help="Python that has mlx_lm, if this one has not.")
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="Folder of llama.cpp: of npm's packages, or a build."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was found to this file.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run the real engine on an export and hold its answers against the model's own.

    Compared are stored numbers, token ids, logits of the trunk and of each head that the engine
    runs, and greedy text. Exit code 1 if a limit is exceeded, 2 if the export is not the model's.
    """
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"--engine is '{engine}'. Use {', '.join(ENGINES)}.")
    check_model_directory(model)
    texts = _read_prompts(prompts)
    chosen = _engine_of(export, engine)
    if python is not None and chosen != "mlx":
        raise ConfigError(f"--python is for mlx, but the engine is {chosen}. Leave it out.")
    if llama_cpp is not None and chosen != "llama.cpp":
        raise ConfigError(
            f"--llama-cpp is for llama.cpp, but the engine is {chosen}. Leave it out."
        )
    checks = _verify(chosen, model, export, texts, new_tokens, python, llama_cpp)
    for line in _table(checks):
        print(line)
    if json_file is not None:
        _write_json(json_file, model, export, chosen, checks)
    failed = sum(not check.passed for check in checks)
    if failed:
        note(f"{failed} of {len(checks)} checks exceed their limit")
        raise typer.Exit(1)
    note(f"{chosen}: all {len(checks)} checks passed")


def _engine_of(export: Path, asked: str | None) -> str:
    """The engine that can run what is there.

    Raises:
        ConfigError: there is nothing that any of ours could, or not the one asked for.
    """
    from wmtp.export.folder import exported_for

    if export.is_file():
        found = "llama.cpp"
    elif (export / "config.json").is_file():
        found = "mlx" if exported_for(export) == "mlx" else "transformers"
    else:
        raise ConfigError(
            f"--export is '{export}', which is no GGUF file and no directory with config.json. "
            "Give what 'wmtp export' wrote."
        )
    if asked is not None and (asked == "llama.cpp") != (found == "llama.cpp"):
        raise ConfigError(
            f"--engine is {asked}, but '{export}' is a {'file' if export.is_file() else 'folder'}: "
            "llama.cpp runs a file, the others a folder."
        )
    return asked or found


def _verify(
    engine: str,
    model: Path,
    export: Path,
    texts: Sequence[str],
    new_tokens: int,
    python: Path | None,
    llama_cpp: Path | None,
) -> "list[Check]":
    if engine == "mlx":
        from wmtp.verify.mlx import verify_mlx

        return verify_mlx(model, export, texts, new_tokens=new_tokens, python=python)
    if engine == "llama.cpp":
        from wmtp.verify.llama_cpp import verify_llama_cpp

        return verify_llama_cpp(model, export, texts, llama_cpp=llama_cpp, new_tokens=new_tokens)
    from wmtp.verify.hugging_face import verify_hugging_face

    return verify_hugging_face(model, export, texts, new_tokens=new_tokens)


def _read_prompts(path: Path | None) -> Sequence[str]:
    from wmtp.untrusted import read_bounded
    from wmtp.verify.prompts import DEFAULT_PROMPTS

    if path is None:
        return DEFAULT_PROMPTS
    try:
        lines = read_bounded(path, LARGEST_PROMPTS).decode("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"--prompts is '{path}': {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts is '{path}', which is no UTF-8 text.") from error
    return [line for line in lines if line.strip()]


def _table(checks: "Sequence[Check]") -> list[str]:
    """Two lines for each check, folded to the terminal's width."""
    width = max(30, shutil.get_terminal_size().columns)
    lines = []
    for check in checks:
        mark = "ok" if check.passed else "FAIL"
        head = f"{mark:4}  {check.name}: {_number(check.found)}, limit {_number(check.limit)}"
        lines += textwrap.wrap(head, width, subsequent_indent=" " * 6)
        lines += textwrap.wrap(
            check.detail, width, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return lines


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.2g}"


def _write_json(
    path: Path, model: Path, export: Path, engine: str, checks: "Sequence[Check]"
) -> None:
    """Write what was found; a number that is not finite is null."""
    from wmtp.runtime.durable import replace_file, storage_errors

    found = {
        "model": str(model),
        "export": str(export),
        "engine": engine,
        "passed": all(check.passed for check in checks),
        "checks": [
            {
                "name": check.name,
                "found": check.found if math.isfinite(check.found) else None,
                "limit": check.limit,
                "passed": check.passed,
                "detail": check.detail,
            }
            for check in checks
        ],
    }
    with storage_errors(f"--json {path} could not be written"):
        replace_file(path, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    print(path, file=sys.stderr)
