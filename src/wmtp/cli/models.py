"""What is done with a finished model: ``wmtp evaluate`` and ``wmtp generate``."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import (
    Backend,
    Format,
    ModelDirectory,
    Verbose,
    check_model_directory,
    device_named,
    make_sources,
    note,
)
from wmtp.errors import ConfigError

if TYPE_CHECKING:
    from wmtp.model.decoding.draft_length import Speculative
    from wmtp.model.generate import Figures, StopReason


@app.command()
def evaluate(
    model: ModelDirectory,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Text to measure on; as --source.")
    ] = None,
    suite: Annotated[
        str,
        typer.Option(help="Comma-separated: perplexity, heads, speed, mbpp, humaneval, contest."),
    ] = "perplexity,heads",
    split: Annotated[
        str | None, typer.Option(help="As of --source; all, of MBPP's problems test, if absent.")
    ] = None,
    data_format: Format = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens per row or window.")] = 1024,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Read only the first tokens of each document.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 4,
    problems: Annotated[
        str | None,
        typer.Option(help="File of the suite's problems; mbpp and humaneval are looked for."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Programs for each problem.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus; above 0, at most 1.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes the draws.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each program.")] = 512,
    speculative: Annotated[str, typer.Option(help="Tokens drafted a pass; auto; off.")] = "auto",
    prompt_format: Annotated[
        Path | None, typer.Option(help="YAML with template and stop, for the suite of problems.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of processor time for a program.")] = 3.0,
    workers: Annotated[int, typer.Option(min=1, help="Programs that run at a time.")] = 1,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Run programs though nothing confines them.")
    ] = False,
    device: Backend = "auto",
    verbose: Verbose = False,
) -> None:
    """Measure a model: perplexity, every head, and how many problems its programs solve.

    Suites of problems need --out; what is in that folder already is not written or judged again.
    """
    import tempfile

    from wmtp.evaluate import (
        beside_marks,
        check_suites,
        make_results_folder,
        marks_of_run,
        read_prompt_format,
        record_in_run,
        without_parts,
        write_results,
    )
    from wmtp.evaluate import evaluate as run_evaluation
    from wmtp.evaluation.code_suites import CODE_SUITES, Trial
    from wmtp.evaluation.continuations import Wanted
    from wmtp.evaluation.prompts import FORMATS
    from wmtp.evaluation.sandbox.verdict import Limits

    suites = tuple(name.strip() for name in suite.split(",") if name.strip())
    check_suites(suites)
    of_code = [name for name in CODE_SUITES if name in suites]
    if len(of_code) < len(suites) and not data:
        raise ConfigError("perplexity, heads and speed need --data: the text to measure on.")
    if of_code and out is None:
        raise ConfigError(f"{of_code[0]} needs --out: the folder of its programs and verdicts.")
    if len(of_code) > 1 and (problems or prompt_format):
        raise ConfigError("--problems and --prompt-format are of one suite. Name one at a time.")
    if "contest" in of_code and not problems:
        raise ConfigError("contest needs --problems: a file in the schema of CodeContests.")
    try:
        if not 0 < top_p <= 1:
            raise ValueError(f"--top-p is {top_p}: it must be above 0 and at most 1")
        wanted = {
            name: Wanted(
                samples=samples,
                max_new_tokens=max_new_tokens,
                stop=FORMATS[name].stop,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                speculative=_drafts(speculative),
                batch_size=max(8, batch_size),
            )
            for name in of_code
        }
        limits = Limits(seconds=timeout)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    trials = {}
    for name in of_code:
        form = read_prompt_format(prompt_format, name) if prompt_format else FORMATS[name]
        trials[name] = Trial(
            problems or name,
            split or ("test" if name == "mbpp" else "all"),
            form,
            replace(wanted[name], stop=form.stop),
            limits,
            workers,
            unsafe,
            limit,
        )
    check_model_directory(model)
    wanted_marks = marks_of_run(model)
    if out is not None:
        make_results_folder(out)
    with tempfile.TemporaryDirectory() as cache:
        result = run_evaluation(
            model,
            suites,
            make_sources(data or [], split or "all", data_format),
            device_named(device),
            max_length=max_length,
            batch_size=batch_size,
            max_tokens=max_tokens,
            cache=Path(cache),
            report=note,
            trials=trials,
            out=out,
        )
    marks = beside_marks(wanted_marks, result)
    if marks:
        result["marks"] = {mark.name: mark.as_dict() for mark in marks}
    print(json.dumps(without_parts(result), indent=1, ensure_ascii=False))
    for mark in marks:
        note(mark.line())
    if out is not None:
        print(write_results(result, out), file=sys.stderr)
    run = record_in_run(model, result)
    if run is not None:
        note(f"{run.name}: its metrics.jsonl has the figures; wmtp sync {run} sends them")


@app.command()
def generate(
    model: ModelDirectory,
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus; above 0, at most 1.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes the draws.")] = 0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: what the text has already becomes less likely.")
    ] = 1.0,
    no_repeat_ngram: Annotated[
        int, typer.Option(min=0, help="So many tokens in a row never come twice; 0: they may.")
    ] = 0,
    speculative: Annotated[
        str,
        typer.Option(help="Tokens that the heads draft a pass; auto: as many as pay; off: none."),
    ] = "auto",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the steps: for small models and on CUDA."),
    ] = False,
    device: Backend = "auto",
    verbose: Verbose = False,
) -> None:
    """Continue a text; the text alone goes to standard output, figures to standard error.

    The text appears as it is decoded, a whole character at a time.
    """
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p}: it must be above 0 and at most 1.")
    if not 0 < repetition_penalty < math.inf:
        raise ConfigError(
            f"--repetition-penalty is {repetition_penalty}: it must be above 0; 1 changes nothing."
        )
    drafts = _drafts(speculative)
    from wmtp.data.characters import whole_characters
    from wmtp.data.tokenizer import TextTokenizer, stream_text
    from wmtp.model.decoding.draft_vocabulary import load_draft_vocabulary
    from wmtp.model.generate import Sampling
    from wmtp.model.generate import generate as tokens_of
    from wmtp.model.hf_layout import load_model
    from wmtp.model.packing import pack_for_decoding

    check_model_directory(model)
    place = device_named(device)
    tokenizer = TextTokenizer.load(model)
    network = pack_for_decoding(load_model(model).to(place.torch_device).eval())
    vocabulary = load_draft_vocabulary(model, network)
    text = sys.stdin.read() if prompt == "-" else prompt
    prompt_ids = [*tokenizer.bos_ids, *tokenizer.encode(text)] or [tokenizer.eos_id]
    ended: list[tuple[StopReason, Figures]] = []

    def tokens() -> Iterator[int]:
        ended.append(
            (
                yield from tokens_of(
                    network,
                    prompt_ids,
                    max_new_tokens=max_new_tokens,
                    sampling=Sampling(
                        temperature, top_p, seed, repetition_penalty, no_repeat_ngram
                    ),
                    stop_ids=(tokenizer.eos_id,),
                    speculative=drafts,
                    draft_vocabulary=vocabulary,
                    compiled=compiled,
                )
            )
        )

    started = time.perf_counter()
    try:
        for piece in whole_characters(piece for piece, _ in stream_text(tokenizer, tokens())):
            print(piece, end="", flush=True)
        print(flush=True)
    except BrokenPipeError:  # whoever read has seen enough, as head does: no fault of anybody's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    seconds = time.perf_counter() - started
    ((reason, figures),) = ended
    why = {"stop_id": " (end of text)", "context": " (context is full)"}.get(reason, "")
    rate = figures.tokens / seconds
    note(f"{figures.tokens} tokens in {seconds:.2f} s, {rate:.1f} tokens/s{why}")
    if figures.acceptance:
        shares = " ".join(f"{share:.2f}" for share in figures.acceptance)
        speed_up = "" if figures.speed_up is None else f", {figures.speed_up:.2f} x plain decoding"
        note(
            f"drafts: {figures.tokens_per_pass:.2f} tokens a pass{speed_up}, accepted at depth "
            f"1, 2, ...: {shares}"
        )


def _drafts(speculative: str) -> "Speculative":
    """What ``--speculative`` says."""
    if speculative == "auto":
        return "auto"
    if speculative == "off":
        return 0
    if not speculative.isascii() or not speculative.isdigit():
        raise ConfigError(
            f"--speculative is '{speculative}': give a number of tokens, auto or off."
        )
    return int(speculative)


@app.command(
    "lm-eval",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness; all options are its own, --model wmtp is ours."""
    from wmtp.harness.command import run_harness

    run_harness(context.args)
