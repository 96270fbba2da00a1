"""From a recipe's sources to rows of tokens, with what a reference model says of them."""

from collections.abc import Callable
from pathlib import Path

from wmtp.config import Settings, SourceSpec
from wmtp.data.prepare import cache_key, prepare_cached
from wmtp.data.reference import Reference, fingerprint_model, load_reference
from wmtp.data.rows import Rows
from wmtp.data.scores import cached_scores, score_key
from wmtp.data.shards import Shards, is_shards
from wmtp.data.sources import Source
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError
from wmtp.loss import Workspace
from wmtp.opening.checks import check_length, check_packing
from wmtp.opening.model_names import model_directory
from wmtp.runtime.device import Device

Report = Callable[[str], None]


def open_tokenizer(settings: Settings) -> TextTokenizer:
    """The recipe's tokenizer, else that of the base model, else that of the training shards.

    Raises:
        ConfigError: none of these is there.
        DataError: it cannot be read.
    """
    path, base = settings.recipe.data.tokenizer, settings.config.paths.models.base
    if path is not None:
        return TextTokenizer.load(Path(path))
    if base is not None:
        return TextTokenizer.load(model_directory(base))
    first = as_source(settings, settings.recipe.data.train.sources[0])
    if is_shards(Path(first.path)):
        return TextTokenizer.load(Path(first.path))
    raise ConfigError(
        "data.tokenizer is missing: a model from scratch needs one. Make it with "
        "wmtp tokenizer train, and set data.tokenizer to its folder."
    )


def as_source(settings: Settings, spec: SourceSpec) -> Source:
    """A recipe's source with a NAME of ``paths.datasets`` replaced by its path."""
    named = settings.config.paths.datasets.get(spec.path, spec.path)
    return Source(named, spec.split, spec.format, spec.solutions)


def shard_cache(settings: Settings) -> Path:
    """Where tokenized data is kept between runs."""
    return Path(settings.config.paths.checkpoints.base_path) / ".cache"


def is_prepared(settings: Settings, tokenizer: TextTokenizer) -> bool:
    """Whether training and evaluation data are tokenized already, so that nothing is written."""
    data = settings.recipe.data
    parts = [part.sources for part in (data.train, data.eval) if part.sources]
    folders = [
        shard_cache(settings) / cache_key(tuple(as_source(settings, s) for s in part), tokenizer)
        for part in parts
        if not is_shards(Path(as_source(settings, part[0]).path))
    ]
    return all(is_shards(folder) for folder in folders)


def open_training_data(
    settings: Settings,
    tokenizer: TextTokenizer,
    cache: Path,
    device: Device,
    workspace: Workspace,
    report: Report,
) -> tuple[Rows, Reference | None]:
    """Rows to learn from, with cached reference scores or else the model that gives them.

    Raises:
        ConfigError: the reference model reads other tokens, or shorter rows.
        DataError: the data cannot be used, or has no column that the weighting needs.
    """
    train = settings.recipe.data.train
    needs = settings.recipe.weighting.needs
    shards = prepare_cached(
        tuple(as_source(settings, spec) for spec in train.sources), tokenizer, cache, report
    )
    reference = None
    scores = None
    if "reference_ce" in needs:
        name = settings.config.paths.models.ref
        assert name is not None  # check_start() has refused that
        directory = model_directory(name)
        check_reference(directory, tokenizer, settings)
        scores = cached_scores(shards, reference_key(settings, shards, directory))
        if scores is None:
            report(f"reference {name} runs at every step; wmtp data score would do it once")
            reference = load_reference(directory, device, workspace)
            check_packing(reference.model, settings.recipe, name)
        else:
            report(f"reference scores of {name} are cached")
    rows = Rows(
        shards,
        train.max_length,
        packed=train.pack_sequences,
        mask_prompt=train.mask_prompt,
        with_loss_weights="loss_weights" in needs,
        reference_scores=scores,
    )
    report(f"training data: {len(rows):,} rows of {train.max_length}, {rows.tokens:,} tokens")
    return rows, reference


def open_evaluation_data(
    settings: Settings, tokenizer: TextTokenizer, cache: Path, report: Report
) -> Rows | None:
    """Rows to measure on, None if the recipe names none."""
    data = settings.recipe.data
    if not data.eval.sources:
        return None
    shards = prepare_cached(
        tuple(as_source(settings, spec) for spec in data.eval.sources), tokenizer, cache, report
    )
    rows = Rows(
        shards,
        data.eval.max_length or data.train.max_length,
        packed=data.train.pack_sequences,
        mask_prompt=data.train.mask_prompt,
    )
    report(f"evaluation data: {len(rows):,} rows, {rows.tokens:,} tokens")
    return rows


def check_reference(directory: Path, tokenizer: TextTokenizer, settings: Settings) -> None:
    """Refuse a reference model that reads other token ids, or shorter rows.

    Raises:
        ConfigError: the tokenizers differ, or a row is too long for it.
    """
    check_length(directory, settings.recipe.data.train.max_length)
    if TextTokenizer.load(directory).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"paths.models.ref is '{directory}', whose tokenizer differs from the one in training. "
            "A reference must read the same tokens: choose one of the same family."
        )


def reference_key(settings: Settings, shards: Shards, directory: Path) -> str:
    """Name of the cached scores of this reference for this data, cut to rows in this way."""
    train = settings.recipe.data.train
    model = f"{fingerprint_model(directory)} {settings.config.devices.mixed_precision}"
    return score_key(shards, model, train.max_length, train.pack_sequences)
