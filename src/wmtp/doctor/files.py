"""The user's own files: whether they say something that this machine can train."""

from collections.abc import Iterator
from pathlib import Path

from wmtp.config import Settings
from wmtp.data.tokenizer import TextTokenizer
from wmtp.doctor.finding import Finding, attempt, not_checked, passed
from wmtp.doctor.memory import memory_is_enough
from wmtp.doctor.training import describe_model, quiet_console
from wmtp.job import assembled
from wmtp.opening.checks import check_start
from wmtp.opening.data import is_prepared, open_tokenizer

STEPS = 10

OVERRIDES = (
    f"train.max_steps={STEPS}",
    "train.num_epochs=null",
    "train.eval_interval=null",
    "train.early_stopping.enabled=false",
    "train.average_last=null",
    "optim.scheduler=constant",
    "optim.warmup_steps=3",
    "run.name=doctor",
    "log_interval=1",
    f"paths.checkpoints.save_interval={STEPS}",
    "paths.checkpoints.save_final=false",
    "paths.checkpoints.upload_to=null",
    "mlflow.tracking_uri=null",
    "mlflow.log_checkpoints=none",
    "tensorboard.enabled=false",
)
"""What makes ten steps of a recipe, which leave nothing behind and tell no server."""


def file_findings(settings: Settings) -> Iterator[Finding]:
    """What can be known of the user's settings without loading a model."""
    algorithm, name = settings.algorithm, settings.recipe.run.name
    yield passed(
        "keys and values", f"recipe {name}, {algorithm}: every key known, none out of range"
    )
    yield attempt("models named", lambda: models_are_there(settings))
    yield attempt("tokenizer", lambda: describe_tokenizer(open_tokenizer(settings)))


def models_are_there(settings: Settings) -> Finding:
    """The directories are there, and the sizes go together."""
    check_start(settings)
    models = settings.config.paths.models
    named = {"base": models.base, "ref": models.ref, "rm": models.rm}
    found = ", ".join(f"{key} {path}" for key, path in named.items() if path)
    return passed("models named", found or "none: from scratch")


def describe_tokenizer(tokenizer: TextTokenizer) -> Finding:
    """How many ids."""
    return passed("tokenizer", f"{tokenizer.vocab_size:,} token ids")


def kept_in(settings: Settings, place: Path) -> Settings:
    """The settings with tokenized data kept in a folder, unless they are kept already."""
    if is_prepared(settings, open_tokenizer(settings)):
        return settings
    config = settings.config
    checkpoints = config.paths.checkpoints.model_copy(update={"base_path": str(place)})
    paths = config.paths.model_copy(update={"checkpoints": checkpoints})
    return settings.model_copy(update={"config": config.model_copy(update={"paths": paths})})


def opening_findings(settings: Settings) -> Iterator[Finding]:
    """Data read and the model loaded, as a run would; nothing trained and nothing kept."""

    def open_all() -> Finding:
        with (
            quiet_console() as console,
            assembled(settings, console.log, keep_shards=False) as job,
        ):
            rows, length = len(job.train_rows), settings.recipe.data.train.max_length
            return passed(
                "data and model",
                f"{rows:,} rows of {length}, {job.train_rows.tokens:,} tokens; "
                f"{describe_model(job)}",
            )

    opened = attempt("data and model", open_all)
    yield opened
    if opened.outcome == "passed":
        yield attempt("memory of a run", lambda: memory_is_enough(settings))
    else:
        yield not_checked("memory of a run", "there is no model whose memory could be predicted")
