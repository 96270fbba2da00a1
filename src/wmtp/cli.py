"""The commands. Torch and the rest are imported by the command that needs them."""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp import __version__
from wmtp.distributed.launcher import end_with_the_launcher, is_launched
from wmtp.errors import ConfigError, LostRankError, WmtpError
from wmtp.runtime.stopping import end_in_order
from wmtp.untrusted import printable

if TYPE_CHECKING:
    from wmtp.config import Settings
    from wmtp.data.documents import BadLines
    from wmtp.data.sources import Source
    from wmtp.model.decoding.draft_length import Speculative
    from wmtp.model.generate import Figures, StopReason

NEWEST = "newest"
"""``--resume`` alone; as ``launch.NEWEST``, which is not imported for every command."""

app = typer.Typer(
    name="wmtp",
    help="Train language models that predict several tokens ahead, with a weight on every target.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Corpora, shards of tokens, reference scores.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Train and describe tokenizers.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file of this machine.")]
RecipeFile = Annotated[str, typer.Option("--recipe", help="YAML file of the experiment.")]
Profiles = Annotated[
    list[str] | None, typer.Option("--profile", help="Partial config laid over the config.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="One key, as in recipe.optim.lr=3e-4.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")]
Texts = Annotated[
    list[str],
    typer.Option(
        "--source",
        help="File, folder, python-stdlib, or ORG/NAME of the Hugging Face hub; may be repeated.",
    ),
]
Split = Annotated[
    str, typer.Option(help="all, train or validation; for MBPP also test and prompt.")
]
Format = Annotated[
    str,
    typer.Option("--format", help="auto, mbpp, humaneval, contest, jsonl, text or tree."),
]
ModelDirectory = Annotated[
    Path, typer.Option("--model", help="Hugging Face directory, such as runs/NAME/final.")
]
Backend = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.")]
TokenizerPath = Annotated[str, typer.Option("--tokenizer", help="tokenizer.json or its folder.")]


def main() -> None:
    """Run a command; users' mistakes become plain lines and an exit code."""
    arguments = sys.argv[1:]
    end_in_order()
    if is_launched():  # before torch is imported, which takes long enough to lose a launcher in
        end_with_the_launcher()
    try:
        app(_with_resume_value(arguments), standalone_mode=True)
    except WmtpError as error:
        if "--verbose" in arguments:
            _print_traceback()
        else:
            from wmtp.secrets import without_secrets

            rank = _wait_for_who_knows_more(error)
            for line in without_secrets(str(error)).split("\n"):
                print(f"{rank}error: {printable(line)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # training says where it stopped, and does not come here
        sys.exit(130)
    except Exception as error:  # a fault of ours is shown whole, as Python would, but for secrets
        if is_launched():
            print(f"{_wait_for_who_knows_more(error) or 'rank 0: '}error:", file=sys.stderr)
        _print_traceback()
        sys.exit(1)


def _print_traceback() -> None:
    from wmtp.secrets import without_secrets

    print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)


def _wait_for_who_knows_more(error: Exception) -> str:
    """What the lines of this rank begin with; nothing for the first, and for a single process.

    Most faults befall all ranks alike. The first says so at once, whereupon the launcher ends
    the others before they say it again. A fault of a later rank alone costs the first its
    company: it lets the other speak before, or be named by the launcher.
    """
    rank = os.environ.get("RANK", "0") if is_launched() else "0"
    time.sleep(6 if isinstance(error, LostRankError) else 0 if rank == "0" else 3)
    return "" if rank == "0" else f"rank {rank}: "


def _with_resume_value(arguments: list[str]) -> list[str]:
    """``--resume`` may stand alone: then it means the newest good checkpoint."""
    result = []
    for i, argument in enumerate(arguments):
        result.append(argument)
        alone = i + 1 == len(arguments) or arguments[i + 1].startswith("-")
        if argument == "--resume" and alone:
            result.append(NEWEST)
    return result


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say so.")
    ] = False,
) -> None:
    """Train language models that predict several tokens ahead, with a weight on every target."""


# training -----------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: RecipeFile,
    config: ConfigFile = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    tags: Annotated[str | None, typer.Option(help="Comma-separated, for the tracker.")] = None,
    profile: Profiles = None,
    override: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on from this checkpoint; alone, from the run's newest good one."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, try one micro-batch, keep nothing.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Train a model from a config and a recipe.

    Ctrl-C ends a step, saves and exits; --resume goes on from there. A resumed run equals one
    that never stopped to the last bit. Not promised: the same bits on another kind of device or
    number of ranks, with another version of torch, or with torch.compile switched on or off.
    """
    settings = _settings(config, recipe, profile, override, run_name, tags)
    from wmtp.launch import launch, plan

    if dry_run:
        plan(settings)
        return
    raise typer.Exit(launch(settings, resume))


def _settings(
    config: str | None,
    recipe: str,
    profile: list[str] | None,
    override: list[str] | None,
    run_name: str | None = None,
    tags: str | None = None,
) -> "Settings":
    """Read both files; what torch reads when it is imported is set before it is."""
    from wmtp.config_files import read_yaml_file
    from wmtp.runtime.environment import set_environment_before_torch

    mps: dict[str, Any] = {}
    for path in [config, *(profile or [])]:
        with contextlib.suppress(ConfigError):  # load_settings tells it with all other faults
            section = read_yaml_file(path).values.get("mps_optimizations") if path else None
            if isinstance(section, dict):  # other types are told by load_settings, too
                mps.update({k: v for k, v in section.items() if isinstance(v, bool | int | float)})
    set_environment_before_torch(
        mps_fallback_to_cpu=mps.get("fallback_to_cpu"),
        mps_high_watermark=mps.get("high_watermark"),
        mps_low_watermark=mps.get("low_watermark"),
    )

    from wmtp.config_check import load_settings

    overrides = list(override or [])
    if run_name is not None:
        overrides.append(f"recipe.run.name={json.dumps(run_name)}")
    if tags is not None:
        overrides.append(f"recipe.run.tags={json.dumps([t for t in tags.split(',') if t])}")
    return load_settings(config, recipe, profiles=tuple(profile or ()), overrides=tuple(overrides))


# measuring and writing ----------------------------------------------------------------------------


@app.command()
def evaluate(
    model: ModelDirectory,
    data: Annotated[list[str], typer.Option("--data", help="Text to measure on; as --source.")],
    suite: Annotated[str, typer.Option(help="Comma-separated: perplexity, heads.")] = (
        "perplexity,heads"
    ),
    split: Split = "all",
    data_format: Format = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens per row or window.")] = 1024,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Read only the first tokens of each document.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 4,
    device: Backend = "auto",
    verbose: Verbose = False,
) -> None:
    """Measure a model on text: perplexity and bits per byte, or every head."""
    import tempfile

    from wmtp.evaluate import check_suites, make_results_folder, write_results
    from wmtp.evaluate import evaluate as run_evaluation

    suites = tuple(name.strip() for name in suite.split(",") if name.strip())
    check_suites(suites)
    _check_model_directory(model)
    if out is not None:
        make_results_folder(out)
    with tempfile.TemporaryDirectory() as cache:
        result = run_evaluation(
            model,
            suites,
            _sources(data, split, data_format),
            _device(device),
            max_length=max_length,
            batch_size=batch_size,
            max_tokens=max_tokens,
            cache=Path(cache),
            report=_note,
        )
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if out is not None:
        print(write_results(result, out), file=sys.stderr)


@app.command()
def generate(
    model: ModelDirectory,
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus; above 0, at most 1.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes the draws.")] = 0,
    speculative: Annotated[
        str, typer.Option(help="Tokens that the heads draft for each pass; auto: as many as pay.")
    ] = "auto",
    device: Backend = "auto",
    verbose: Verbose = False,
) -> None:
    """Continue a text; the text alone goes to standard output, figures to standard error."""
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p}: it must be above 0 and at most 1.")
    drafts = _drafts(speculative)
    from wmtp.data.tokenizer import TextTokenizer, stream_text
    from wmtp.model.generate import Sampling
    from wmtp.model.generate import generate as tokens_of
    from wmtp.model.hf_layout import load_model

    _check_model_directory(model)
    place = _device(device)
    tokenizer = TextTokenizer.load(model)
    network = load_model(model).to(place.torch_device).eval()
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
                    sampling=Sampling(temperature, top_p, seed),
                    stop_ids=(tokenizer.eos_id,),
                    speculative=drafts,
                )
            )
        )

    started = time.perf_counter()
    for piece, _ in stream_text(tokenizer, tokens()):
        print(piece, end="", flush=True)
    print()
    seconds = time.perf_counter() - started
    ((reason, figures),) = ended
    why = {"stop_id": " (end of text)", "context": " (context is full)"}.get(reason, "")
    rate = figures.tokens / seconds
    _note(f"{figures.tokens} tokens in {seconds:.2f} s, {rate:.1f} tokens/s{why}")
    if figures.acceptance:
        shares = " ".join(f"{share:.2f}" for share in figures.acceptance)
        speed_up = "" if figures.speed_up is None else f", {figures.speed_up:.2f} x plain decoding"
        _note(
            f"drafts: {figures.tokens_per_pass:.2f} tokens a pass{speed_up}, accepted at depth "
            f"1, 2, ...: {shares}"
        )


def _drafts(speculative: str) -> "Speculative":
    """What ``--speculative`` says."""
    if speculative == "auto":
        return "auto"
    if not speculative.isascii() or not speculative.isdigit():
        raise ConfigError(f"--speculative is '{speculative}': give a number of tokens, or auto.")
    return int(speculative)


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/NAME.")],
    last: Annotated[int, typer.Option(min=1, help="How many of its newest good checkpoints.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN/average if absent.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write the mean of a run's last models as a model directory."""
    from wmtp.average import AVERAGE_NAME, average_checkpoints, newest_good_checkpoints
    from wmtp.runtime.lock import hold_run_lock
    from wmtp.runtime.run_folder import RunFolder

    folder = RunFolder(run.resolve())
    if not folder.checkpoints.is_dir():
        raise ConfigError(
            f"'{run}' is no run folder (it has no checkpoints/). Give a folder such as runs/NAME."
        )
    target = out or run / AVERAGE_NAME
    with hold_run_lock(folder.lock_file, folder.name):  # training removes old checkpoints
        chosen, refused = newest_good_checkpoints(folder.checkpoints, last)
        for bad, reason in refused:
            print(f"warning: checkpoint {bad.name} {reason}: not used", file=sys.stderr)
        average_checkpoints(chosen, target)
    print(f"{target}: mean of {', '.join(path.name for path in chosen)}")


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/NAME.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's, instead of the run's; with its login.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Send the trackers of a run what they were not sent while it trained."""
    from wmtp.runtime.environment import set_environment_before_torch

    set_environment_before_torch()
    from wmtp.runtime.lock import hold_run_lock
    from wmtp.runtime.run_folder import RunFolder
    from wmtp.sync import sync as send_what_is_missing

    folder = RunFolder(run.resolve())
    if not folder.settings_file.is_file():
        raise ConfigError(f"'{run}' is no run folder (it has no run.yaml). Give one as runs/NAME.")
    with hold_run_lock(folder.lock_file, folder.name):
        send_what_is_missing(folder, tracking_uri, print)


# data ---------------------------------------------------------------------------------------------


@data_app.command()
def prepare(
    source: Texts,
    tokenizer: TokenizerPath,
    out: Annotated[Path, typer.Option(help="Folder of shards to make.")],
    split: Split = "all",
    data_format: Format = "auto",
    solutions: Annotated[
        str, typer.Option(help="Of contests: correct programs, or all of them with a reward.")
    ] = "correct",
    verbose: Verbose = False,
) -> None:
    """Tokenize text into shards that train, evaluate and score can read."""
    from wmtp.data.prepare import prepare as run_prepare
    from wmtp.data.tokenizer import TextTokenizer

    sources = _sources(source, split, data_format, solutions)
    tell = _now_and_then()
    report = run_prepare(
        sources,
        TextTokenizer.load(tokenizer),
        out,
        lambda documents, tokens: tell(f"{documents:,} documents, {tokens:,} tokens so far"),
    )
    for line in report.lines():
        print(line)


@data_app.command()
def score(
    recipe: RecipeFile,
    config: ConfigFile = None,
    profile: Profiles = None,
    override: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Run the reference model over a recipe's training data once, and keep its scores."""
    settings = _settings(config, recipe, profile, override)
    from wmtp.runtime.console import Console
    from wmtp.score import score_training_data

    with Console() as console:
        console.result(score_training_data(settings, console))


@data_app.command()
def inspect(
    shards: Annotated[Path, typer.Argument(help="Folder of shards.")],
    documents: Annotated[int, typer.Option(min=0, help="How many to show.")] = 3,
    characters: Annotated[int, typer.Option(min=1, help="How much of each.")] = 300,
    verbose: Verbose = False,
) -> None:
    """Show what shards hold: counts, columns, and some documents as the model reads them."""
    from wmtp.data.inspect import describe_shards

    for line in describe_shards(shards, documents, characters):
        print(line)


@tokenizer_app.command("train")
def train_tokenizer(
    source: Texts,
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json.")],
    vocab_size: Annotated[int, typer.Option(min=257)] = 32000,
    split: Split = "all",
    data_format: Format = "auto",
    verbose: Verbose = False,
) -> None:
    """Train a lossless byte-level BPE tokenizer on text."""
    from wmtp.data.documents import BadLines
    from wmtp.data.tokenizer_training import train_tokenizer as run_training
    from wmtp.runtime.durable import storage_errors

    bad = BadLines()
    trained = run_training(_texts(_sources(source, split, data_format), bad), vocab_size)
    for line in bad.report():
        _note(line)
    with storage_errors(f"{out} could not be written"):
        trained.save(out)
    print(f"{out}: {trained.vocab_size} tokens")


@tokenizer_app.command("describe")
def describe_tokenizers(
    tokenizer: Annotated[list[str], typer.Option(help="May be given several times.")],
    source: Texts,
    split: Split = "all",
    data_format: Format = "auto",
    verbose: Verbose = False,
) -> None:
    """Measure tokenizers on text: bytes per token, and whether every document survives."""
    from wmtp.data.documents import BadLines
    from wmtp.data.tokenizer import TextTokenizer
    from wmtp.data.tokenizer_training import describe_tokenizer

    sources = _sources(source, split, data_format)
    for number, path in enumerate(tokenizer):
        bad = BadLines()
        print(path)
        for line in describe_tokenizer(TextTokenizer.load(path), _texts(sources, bad)).lines():
            print(f"  {line}")
        for line in bad.report() if number == 0 else ():  # the same for each
            _note(line)


def _sources(
    paths: list[str], split: str, data_format: str, solutions: str = "correct"
) -> "tuple[Source, ...]":
    from wmtp.data.sources import make_source

    return tuple(make_source(path, split, data_format, solutions) for path in paths)


def _texts(sources: "tuple[Source, ...]", bad: "BadLines") -> Iterator[str]:
    """The texts of sources; while they are read the user sees how far it has come."""
    from wmtp.data.sources import read_texts

    tell, count, characters = _now_and_then(), 0, 0
    for source in sources:
        for text in read_texts(source, bad):
            count += 1
            characters += len(text)
            tell(f"{count:,} texts, {characters:,} characters so far")
            yield text


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _now_and_then(seconds: float = 10.0) -> Callable[[str], None]:
    """Shows only what it is told some seconds after the last time: reading has no known end."""
    import time

    from wmtp.runtime.console import Console

    console, shown_at = Console(), time.monotonic()

    def tell(text: str) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= seconds:
            shown_at = time.monotonic()
            console.line(text)

    return tell


def _check_model_directory(model: Path) -> None:
    from wmtp.model.hf_config import is_model_directory

    if not is_model_directory(model):
        raise ConfigError(
            f"--model is '{model}': no model directory (it has no config.json). Give a folder such "
            "as runs/NAME/final."
        )


def _device(backend: str) -> Any:
    from wmtp.runtime.environment import set_environment_before_torch

    set_environment_before_torch()
    from wmtp.runtime.device import choose_device

    if backend not in ("auto", "cuda", "mps", "cpu"):
        raise ConfigError(f"--device is {backend!r}. Use auto, cuda, mps or cpu.")
    return choose_device(backend, "fp32")  # type: ignore[arg-type]  # checked above
