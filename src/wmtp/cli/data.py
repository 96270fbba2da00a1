"""``wmtp data`` and ``wmtp tokenizer``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.apps import data_app, tokenizer_app
from wmtp.cli.options import (
    ConfigFile,
    Format,
    Overrides,
    Profiles,
    RecipeFile,
    Split,
    Texts,
    Verbose,
    make_sources,
    note,
    read_settings,
)
from wmtp.errors import ConfigError

if TYPE_CHECKING:
    from wmtp.data.documents import BadLines
    from wmtp.data.sources import Source


@data_app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Folder of shards, or of clean text, to make.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            help="To shards: file, folder, python-stdlib, or ORG/NAME of the Hugging Face hub; may "
            "be repeated.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="To shards: tokenizer.json or its folder.")
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option("--sources", help="To clean text: YAML list of raw corpora (docs/korean.md)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes; what comes out is the same. Unless given, to clean text all cores, to "
            "shards one.",
        ),
    ] = None,
    split: Split = "all",
    data_format: Format = "auto",
    solutions: Annotated[
        str, typer.Option(help="Of contests: correct programs, or all of them with a reward.")
    ] = "correct",
    verbose: Verbose = False,
) -> None:
    """Make shards of text and a tokenizer, or clean text of raw corpora.

    Shards, which train, evaluate and score can read, are made with --source and --tokenizer. With
    --sources raw corpora are read, cleaned and freed of duplicates. The same command goes on where
    it was stopped.
    """
    if (source is None) == (sources is None):
        raise ConfigError("give --source (to shards) or --sources (to clean text), one of them.")
    if sources is not None:
        shard_options = {"--tokenizer": tokenizer, "--split": split, "--format": data_format,
                         "--solutions": solutions}  # fmt: skip
        for option, value in shard_options.items():
            if value not in (None, "all", "auto", "correct"):
                raise ConfigError(f"{option} belongs to --source; --sources makes no shards.")
        _prepare_corpus(sources, out, workers)
        return
    if tokenizer is None:
        raise ConfigError("--tokenizer is missing: shards are made with one.")
    assert source is not None
    from wmtp.data.prepare import prepare as run_prepare
    from wmtp.data.tokenizer import TextTokenizer

    tell = _now_and_then()
    try:
        report = run_prepare(
            make_sources(source, split, data_format, solutions),
            TextTokenizer.load(tokenizer),
            out,
            lambda documents, tokens: tell(f"{documents:,} documents, {tokens:,} tokens so far"),
            workers or 1,
            note,
        )
    except KeyboardInterrupt:
        note("the same command goes on from here")
        raise
    for line in report.lines():
        print(line)


def _prepare_corpus(sources: Path, out: Path, workers: int | None) -> None:
    """Raw corpora to clean text."""
    from wmtp.corpus.pipeline.prepare import prepare_corpus
    from wmtp.corpus.settings import load_corpus_settings
    from wmtp.runtime.console import Console
    from wmtp.runtime.machine import usable_cores

    settings = load_corpus_settings(sources)
    with Console() as console:
        try:
            lines = prepare_corpus(settings, out, workers or usable_cores(), console)
        except KeyboardInterrupt:
            console.line("the same command goes on from here")
            raise
        for line in lines:
            console.result(line)


@data_app.command()
def score(
    recipe: RecipeFile,
    config: ConfigFile = None,
    profile: Profiles = None,
    override: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Run the reference model over a recipe's training data once, and keep its scores."""
    settings = read_settings(config, recipe, profile, override)
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
    sample_bytes: Annotated[
        int,
        typer.Option(min=1, help="Bytes of text to learn from, as many of each source as it has."),
    ] = 500_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of documents.")] = 0,
    digits: Annotated[
        int,
        typer.Option(min=1, max=3, help="Most digits in a token; only 1 can be exported to GGUF."),
    ] = 1,
    compose: Annotated[
        bool, typer.Option("--nfc", help="Compose characters (NFC) before tokenizing.")
    ] = False,
    trainer: Annotated[str, typer.Option(help="auto, rustbpe or tokenizers.")] = "auto",
    verbose: Verbose = False,
) -> None:
    """Train a lossless byte-level BPE tokenizer on text."""
    import json

    from wmtp.data.documents import BadLines
    from wmtp.data.tokenizer_sample import choose_sample
    from wmtp.data.tokenizer_training import choose_trainer
    from wmtp.data.tokenizer_training import train_tokenizer as run_training
    from wmtp.runtime.durable import storage_errors

    sources = make_sources(source, split, data_format)
    library = choose_trainer(trainer)
    readings: list[BadLines] = []

    def read() -> Iterator[tuple[str, str]]:
        readings.append(BadLines())
        return _texts(sources, readings[-1])

    sample = choose_sample(read, sample_bytes, seed)
    for line in readings[0].report():
        note(line)
    trained = run_training(
        sample.texts(read()),
        vocab_size,
        digits=digits,  # type: ignore[arg-type]  # its bounds are the option's
        compose=compose,
        trainer=library,
    )
    about = {
        "trainer": library,
        "vocab_size": vocab_size,
        "digits": digits,
        "nfc": compose,
        "sample_bytes": sample_bytes,
        "seed": seed,
        "sources": [share.as_json() for share in sample.shares],
        "fingerprint": trained.fingerprint,
    }
    with storage_errors(f"{out} could not be written"):
        trained.save(out)
        (out / "training.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    print(f"{out}: {trained.vocab_size} tokens, learned by {library}")
    for share in sample.shares:
        print(f"  {share}")


@tokenizer_app.command("describe")
def describe_tokenizers(
    tokenizer: Annotated[
        list[str],
        typer.Option(
            help="tokenizer.json, its folder, or a SentencePiece .model; may be repeated."
        ),
    ],
    source: Texts,
    split: Split = "all",
    data_format: Format = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
    verbose: Verbose = False,
) -> None:
    """Measure tokenizers on text: bytes per token, and whether every document survives."""
    import json

    from wmtp.data.documents import BadLines
    from wmtp.data.tokenizer_description import compare, describe_tokenizer, open_described

    sources = make_sources(source, split, data_format)
    found = []
    for number, path in enumerate(tokenizer):
        bad = BadLines()
        described = open_described(path)
        found.append(describe_tokenizer(described, _texts(sources, bad), name=path))
        for line in () if as_json else [path, *(f"  {line}" for line in found[-1].lines())]:
            print(line)
        for line in bad.report() if number == 0 else ():  # the same for each
            note(line)
    if as_json:
        print(json.dumps([one.as_json() for one in found], indent=2, ensure_ascii=False))
    elif len(found) > 1:
        for line in compare(found):
            print(line)


def _texts(sources: "tuple[Source, ...]", bad: "BadLines") -> Iterator[tuple[str, str]]:
    """The texts of sources with their names; the user sees how far reading has come."""
    from wmtp.data.sources import read_named_texts

    tell, count, characters = _now_and_then(), 0, 0
    for source in sources:
        for name, text in read_named_texts(source, bad):
            count += 1
            characters += len(text)
            tell(f"{count:,} texts, {characters:,} characters so far")
            yield name, text


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
