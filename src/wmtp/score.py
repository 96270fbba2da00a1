"""Scoring a recipe's training data with its reference model, once and for all runs."""

from wmtp.config import Settings
from wmtp.data.prepare import prepare_cached
from wmtp.data.reference import load_reference, score_rows
from wmtp.data.scores import cached_scores, scoring_rows, write_scores
from wmtp.errors import ConfigError
from wmtp.opening.checks import check_packing, check_start
from wmtp.opening.data import (
    as_source,
    check_reference,
    open_tokenizer,
    reference_key,
    shard_cache,
)
from wmtp.opening.model_names import model_directory
from wmtp.runtime.console import Console
from wmtp.runtime.device import choose_device


def score_training_data(settings: Settings, console: Console) -> str:
    """Run the reference model once over a recipe's training data and keep its scores.

    Args:
        settings: their ``paths.models.ref`` is the reference.
        console: what the user sees.

    Returns:
        One line that says where the scores are.

    Raises:
        ConfigError: there is no reference model.
    """
    config, train = settings.config, settings.recipe.data.train
    if config.paths.models.ref is None:
        raise ConfigError("paths.models.ref is empty: set it to the reference model's directory.")
    device = choose_device(config.devices.compute_backend, config.devices.mixed_precision)
    check_start(settings)
    tokenizer = open_tokenizer(settings)
    directory = model_directory(config.paths.models.ref)
    check_reference(directory, tokenizer, settings)
    sources = tuple(as_source(settings, spec) for spec in train.sources)
    shards = prepare_cached(sources, tokenizer, shard_cache(settings), console.line)
    key = reference_key(settings, shards, directory)
    column = cached_scores(shards, key)
    if column is None:
        reference = load_reference(
            directory, device, device.loss_workspace(settings.recipe.loss.chunk_rows)
        )
        check_packing(reference.model, settings.recipe, str(directory))
        rows = scoring_rows(shards, train.max_length, train.pack_sequences)
        with console.progress(0, len(rows), "row") as bar:
            chunks = score_rows(reference, rows, train.batch_size, bar.advance)
            column = write_scores(rows, key, chunks)
    return (
        f"{column.folder / column.file}: {len(column.values):,} scores of {directory}, "
        f"mean {float(column.values.mean(dtype='float64')):.4f} nats"
    )
