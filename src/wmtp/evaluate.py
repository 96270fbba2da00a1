"""Measuring a finished model: suites in, one honest JSON out."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

from wmtp import __version__
from wmtp.config_files import read_yaml_file
from wmtp.data.batches import evaluation_batches
from wmtp.data.documents import BadLines
from wmtp.data.prepare import Report, prepare_cached
from wmtp.data.rows import Rows
from wmtp.data.shards import is_shards
from wmtp.data.sources import Source, read_texts
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError, DataError
from wmtp.evaluation.code_suites import CODE_SUITES, Trial, run_suite
from wmtp.evaluation.head_details import measure_head_details
from wmtp.evaluation.marks import Mark, compare_with_marks, read_marks
from wmtp.evaluation.perplexity import measure_text
from wmtp.evaluation.problems import Suite as CodeSuite
from wmtp.evaluation.prompts import FORMATS, PromptFormat
from wmtp.evaluation.speed import measure_speed
from wmtp.loss import Workspace
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary, load_draft_vocabulary
from wmtp.model.hf_layout import load_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.packing import pack_for_decoding
from wmtp.runtime.device import Device
from wmtp.runtime.durable import replace_file, storage_errors
from wmtp.runtime.lock import hold_run_lock
from wmtp.runtime.metrics import MetricsLog, read_metrics
from wmtp.runtime.run_folder import RunFolder

SUITES: Final = ("perplexity", "heads", "speed", *CODE_SUITES)
SPEED_PROMPTS: Final = 8
"""Documents that speed is measured on, one after another."""

SPEED_PROMPT_TOKENS: Final = 32
SPEED_NEW_TOKENS: Final = 128


def evaluate(
    directory: Path,
    suites: tuple[str, ...],
    sources: tuple[Source, ...],
    device: Device,
    *,
    max_length: int,
    batch_size: int,
    max_tokens: int | None,
    cache: Path,
    report: Report | None = None,
    trials: Mapping[CodeSuite, Trial] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Run suites on a model directory.

    Args:
        directory: a Hugging Face directory with its tokenizer.
        suites: names from ``SUITES``.
        sources: the text to measure on.
        device: where to compute.
        max_length: tokens per row or window, cut to what the model can take.
        batch_size: rows at a time in ``heads``.
        max_tokens: in ``perplexity``, read no more than this many tokens of each document.
        cache: where tokenized text may be kept.
        report: takes lines about what was left out of the data, and how far it is.
        trials: how each suite of problems is run.
        out: folder of what those suites write; it is there.

    Returns:
        Model, data and figures, ready for JSON.

    Raises:
        WmtpError: a suite, model or data set cannot be used.
    """
    check_suites(suites)
    tokenizer = TextTokenizer.load(directory)
    model = load_model(directory).to(device.torch_device).eval()
    model.set_tiled_attention(device.tiled_attention)
    length = min(max_length, model.trunk_shape.max_seq_length)
    workspace = device.loss_workspace()
    result: dict[str, Any] = {
        "model": str(directory),
        "wmtp": __version__,
        "device": device.name,
        "precision": device.precision,
        "sources": [asdict(source) for source in sources],
    }
    if "perplexity" in suites:
        result["perplexity"] = _perplexity(
            model, tokenizer, sources, device, workspace, length, max_tokens, report
        )
    if "heads" in suites:
        result["heads"] = _heads(
            model,
            tokenizer,
            sources,
            device,
            length,
            batch_size,
            cache,
            None if "perplexity" in suites else report,  # which has told it
        )
    of_code = [suite for suite in CODE_SUITES if suite in suites]
    if of_code or "speed" in suites:
        pack_for_decoding(model)  # last: a packed model computes no losses
        vocabulary = load_draft_vocabulary(directory, model)
    if "speed" in suites:
        result["speed"] = _speed(model, tokenizer, sources, vocabulary)
    if of_code:
        assert trials is not None
        assert out is not None
        tell = report or (lambda _: None)
        for suite in of_code:
            result[suite] = run_suite(
                suite, directory, model, tokenizer, vocabulary, trials[suite], out, tell
            )
    return result


def marks_of_run(directory: Path) -> dict[str, float]:
    """The marks of the recipe that made a model.

    Returns:
        Nothing if the model is not in the folder of a run, or its recipe sets no marks.

    Raises:
        ConfigError: ``run.yaml`` cannot be read, or its marks cannot be used.
    """
    file = RunFolder(directory.resolve().parent).settings_file
    if not file.exists() and not file.is_symlink():  # anything else is for the reader to refuse
        return {}
    document = read_yaml_file(str(file))
    if document.errors:
        raise ConfigError(document.errors[0])
    return read_marks(document.values.get("recipe"), str(file))


def beside_marks(marks: dict[str, float], result: Mapping[str, Any]) -> list[Mark]:
    """Marks beside an evaluation's figures."""
    return compare_with_marks(
        marks,
        result.get("perplexity", {}).get("bits_per_byte"),
        result.get("speed", {}).get("tokens_per_second"),
    )


def record_in_run(directory: Path, result: Mapping[str, Any]) -> Path | None:
    """Put an evaluation's figures into ``metrics.jsonl`` of the run that made the model.

    Names are ``evaluation/SUITE/FIGURE``; ``wmtp sync`` sends them to the run's trackers.

    Returns:
        The run's folder; None if the model is not the ``final`` of one.

    Raises:
        StorageError: the row could not be written.
        ConfigError: the run is training.
    """
    folder = RunFolder(directory.resolve().parent)
    if not folder.settings_file.is_file() or not folder.metrics_file.is_file():
        return None
    row: dict[str, int | float] = {}
    for suite in SUITES:
        for name, value in without_parts(dict(result)).get(suite, {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                row[f"evaluation/{suite}/{name.replace('@', '_at_')}"] = value
    with hold_run_lock(folder.lock_file, folder.name):
        last = max((row["step"] for row in read_metrics(folder.metrics_file)), default=0)
        with MetricsLog(folder.metrics_file) as metrics:
            metrics.write({"step": int(last), **row})
    return folder.root


def check_suites(suites: tuple[str, ...]) -> None:
    """Refuse a suite that there is not.

    Raises:
        ConfigError: names the ones there are.
    """
    if not suites:
        raise ConfigError(f"no suite is named. Use {', '.join(SUITES)}.")
    for suite in suites:
        if suite not in SUITES:
            raise ConfigError(f"suite is {suite!r}: no such suite. Use {', '.join(SUITES)}.")


def make_results_folder(folder: Path) -> None:
    """Make the folder of results, before the work whose results it takes.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(f"{folder} could not be created"):
        folder.mkdir(parents=True, exist_ok=True)


def read_prompt_format(path: Path, suite: CodeSuite) -> PromptFormat:
    """A format from a YAML file with ``template`` and ``stop``.

    Raises:
        ConfigError: the file cannot be read, or says something else.
    """
    document = read_yaml_file(str(path))
    if document.errors:
        raise ConfigError(document.errors[0])
    values = document.values
    unknown = sorted(set(values) - {"template", "stop"})
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} is no key. Use template and stop.")
    template, stop = values.get("template", FORMATS[suite].template), values.get("stop")
    if not isinstance(template, str) or "{description}" not in template:
        raise ConfigError(f"{path}: template must be a text with {{description}} in it.")
    if stop is None:
        return PromptFormat(template, FORMATS[suite].stop)
    if not isinstance(stop, list) or not all(isinstance(one, str) and one for one in stop):
        raise ConfigError(f"{path}: stop must be a list of texts.")
    return PromptFormat(template, tuple(stop))


_PARTS: Final = ("each", "problems")


def without_parts(result: dict[str, Any]) -> dict[str, Any]:
    """The figures alone, without those of each row and document."""
    return {
        name: {key: figure for key, figure in part.items() if key not in _PARTS}
        if isinstance(part, dict)
        else part
        for name, part in result.items()
    }


def write_results(result: dict[str, Any], folder: Path) -> Path:
    """Write ``evaluation.json`` into a folder, which is made.

    Raises:
        StorageError: the disk refused.
    """
    make_results_folder(folder)
    path = folder / "evaluation.json"
    with storage_errors(f"{path} could not be written"):
        replace_file(path, json.dumps(result, indent=1, ensure_ascii=False).encode() + b"\n")
    return path


def _perplexity(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    sources: tuple[Source, ...],
    device: Device,
    workspace: Workspace,
    window: int,
    max_tokens: int | None,
    report: Report | None,
) -> dict[str, Any]:
    bad = BadLines()
    texts = _texts(sources, bad)
    figures = measure_text(
        model, tokenizer, texts, device, workspace, window=window, max_tokens=max_tokens
    )
    if report:
        for line in bad.report():
            report(line)
    if figures is None:
        raise DataError("the data has no text to predict: give longer documents.")
    return {
        **asdict(figures),
        "perplexity": figures.perplexity,
        "bits_per_byte": figures.bits_per_byte,
    }


def _speed(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    sources: tuple[Source, ...],
    vocabulary: DraftVocabulary,
) -> dict[str, Any]:
    room = model.trunk_shape.max_seq_length
    new_tokens = min(SPEED_NEW_TOKENS, max(2, room // 2))
    length = max(1, min(SPEED_PROMPT_TOKENS, room - new_tokens))
    texts = islice(_texts(sources, BadLines()), SPEED_PROMPTS)
    read = ([*tokenizer.bos_ids, *tokenizer.encode(text)][:length] for text in texts)
    prompts = [prompt for prompt in read if prompt]
    figures = measure_speed(model, prompts, max_new_tokens=new_tokens, draft_vocabulary=vocabulary)
    if figures is None:
        raise DataError("the data has no text to continue: give longer documents.")
    return {**asdict(figures), "tokens_per_second": figures.tokens_per_second}


def _texts(sources: tuple[Source, ...], bad: BadLines) -> Iterator[str]:
    for source in sources:
        if is_shards(Path(source.path)):
            raise DataError(
                f"data source '{source.path}' is a folder of shards, which keeps no text: measure "
                "it with --suite heads, or give the text itself."
            )
        yield from read_texts(source, bad)


def _heads(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    sources: tuple[Source, ...],
    device: Device,
    length: int,
    batch_size: int,
    cache: Path,
    report: Report | None,
) -> dict[str, Any]:
    shards = prepare_cached(sources, tokenizer, cache, report)
    most = model.trunk.longest_packed_row  # 0: each document in a row of its own, cut to it
    rows = Rows(shards, min(length, most or length), packed=most > 0)
    scale = model.heads_shape.head_scale or (1.0,) * model.horizon
    batches = evaluation_batches(rows, batch_size=batch_size, horizon=model.horizon)
    figures = measure_head_details(model, batches, device, scale)
    if not figures:
        raise DataError("the data has no target to predict: give longer documents.")
    return {
        "row_length": rows.max_length,
        "packed": rows.packed,
        "head_scale": list(scale),
        **figures,
    }
