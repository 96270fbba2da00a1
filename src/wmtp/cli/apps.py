"""What commands are added to."""

from typing import Annotated

import typer

from wmtp import __version__

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
