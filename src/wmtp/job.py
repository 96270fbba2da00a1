"""From settings to everything a run needs, with all that can be checked checked first."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wmtp import __version__
from wmtp.config import Recipe, Settings, SourceSpec
from wmtp.data.batches import Batch, evaluation_batches
from wmtp.data.loading import load_batches
from wmtp.data.prepare import cache_key, prepare_cached
from wmtp.data.reference import Reference, fingerprint_model, load_reference
from wmtp.data.rows import Rows
from wmtp.data.scores import cached_scores, score_key
from wmtp.data.shards import Shards, is_shards
from wmtp.data.sources import Source
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError
from wmtp.loss import Workspace
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, build_model
from wmtp.runtime.device import Device, choose_device

Report = Callable[[str], None]

KEYS_WITH_A_BASE = frozenset({"kind", "heads", "dropout"})
"""Keys of the recipe's model section that a pretrained start leaves open."""


@dataclass(frozen=True)
class Job:
    """What is trained on what, on which device.

    Attributes:
        settings: what was asked for.
        device: where to compute.
        tokenizer: of the data and the model alike.
        model: on the device.
        train_rows: what is learned.
        eval_rows: what is measured; None if the recipe names no evaluation data.
        reference: the reference model, if the weighting needs one and no cached scores serve.
        workspace: scratch memory of the loss.
        max_steps: optimizer steps of the whole run.
    """

    settings: Settings
    device: Device
    tokenizer: TextTokenizer
    model: MultiTokenModel
    train_rows: Rows
    eval_rows: Rows | None
    reference: Reference | None
    workspace: Workspace
    max_steps: int

    @property
    def rows_per_step(self) -> int:
        """Rows of data in one optimizer step."""
        return rows_per_step(self.settings.recipe)

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that move."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def training_batches(self, start_row: int) -> AbstractContextManager[Iterator[Batch]]:
        """Micro-batches from a position in the data on, without end."""
        train = self.settings.recipe.data.train
        return load_batches(
            self.train_rows,
            seed=self.settings.config.devices.seed,
            start_row=start_row,
            batch_size=train.batch_size,
            horizon=self.model.horizon,
            num_workers=train.num_workers,
            prefetch_factor=train.prefetch_factor,
            pin_memory=self.device.pin_memory,
        )

    def evaluation_batches(self) -> Iterator[Batch]:
        """The evaluation data, in order."""
        assert self.eval_rows is not None
        data = self.settings.recipe.data.eval
        return evaluation_batches(
            self.eval_rows,
            batch_size=data.batch_size,
            horizon=self.model.horizon,
            max_rows=data.max_rows,
        )

    def reference_ce(self, batch: Batch) -> Tensor | None:
        """What the reference model thinks of the batch's targets, cached or computed now."""
        if self.reference is None:
            return batch.reference_ce_BSH
        return self.reference.target_ce(batch)

    def describe(self) -> dict[str, Any]:
        """What ``run.yaml`` says: settings, versions, sizes."""
        return {
            **self.settings.as_dict(),
            "versions": {"wmtp": __version__, "torch": torch.__version__},
            "device": self.device.name,
            "parameters": self.model.num_parameters,
            "max_steps": self.max_steps,
            "training_rows": len(self.train_rows),
            "tokenizer": self.tokenizer.fingerprint,
            "reference_scores": "computed at each step" if self.reference else "cached or none",
        }


def rows_per_step(recipe: Recipe) -> int:
    """Rows of data in one optimizer step."""
    return recipe.data.train.batch_size * recipe.train.gradient_accumulation


@contextmanager
def assembled(
    settings: Settings, report: Report, checkpoint: Path | None = None, *, keep_shards: bool = True
) -> Iterator[Job]:
    """Build a run's parts, cheap and likely faults first, the model's weights last.

    Args:
        settings: what was asked for.
        report: takes a line about what is being done.
        checkpoint: where the model's weights come from instead of the recipe's start.
        keep_shards: tokenized data stays under the base path for the next run.

    Raises:
        WmtpError: something that was asked for is not there or does not fit together.
    """
    config, recipe = settings.config, settings.recipe
    device = choose_device(config.devices.compute_backend, config.devices.mixed_precision)
    check_start(settings)
    tokenizer = open_tokenizer(settings)
    workspace = open_workspace(settings, device)
    with tempfile.TemporaryDirectory() as temporary:
        kept = keep_shards or is_prepared(settings, tokenizer)
        cache = shard_cache(settings) if kept else Path(temporary)
        train_rows, reference = open_training_data(
            settings, tokenizer, cache, device, workspace, report
        )
        eval_rows = open_evaluation_data(settings, tokenizer, cache, report)
        steps = recipe.train.max_steps or math.ceil(
            (recipe.train.num_epochs or 1) * len(train_rows) / rows_per_step(recipe)
        )
        device.seed(config.devices.seed)
        model = open_model(settings, tokenizer, checkpoint).to(device.torch_device)
        model.set_gradient_checkpointing(recipe.train.gradient_checkpointing)
        if recipe.train.freeze == "trunk":
            model.freeze_trunk()
        if config.devices.use_torch_compile:
            model.compile_trunk()
        report(f"model: {model.num_parameters:,} parameters on {device.name}")
        yield Job(
            settings,
            device,
            tokenizer,
            model,
            train_rows,
            eval_rows,
            reference,
            workspace,
            steps,
        )


def open_workspace(settings: Settings, device: Device) -> Workspace:
    """Scratch memory for the loss, as the device likes it."""
    return Workspace(
        device.loss_workspace_bytes,
        settings.recipe.loss.chunk_rows or device.loss_chunk_rows,
        exact_counts=device.exact_counts,
    )


def check_start(settings: Settings) -> None:
    """Check what the settings name without loading any of it.

    Raises:
        ConfigError: a model directory is missing, or sizes are missing or out of place.
    """
    models, model = settings.config.paths.models, settings.recipe.model
    for key, path in (("base", models.base), ("ref", models.ref)):
        if path is not None and not (Path(path) / "config.json").is_file():
            raise ConfigError(
                f"paths.models.{key} is '{path}': no model directory (it has no config.json)."
            )
    if models.base is not None:
        check_length(Path(models.base), longest_row(settings.recipe))
    sizes = {
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
    }
    missing = [name for name, value in sizes.items() if value is None]
    default = type(model)()
    given = [
        name
        for name in type(model).model_fields
        if name not in KEYS_WITH_A_BASE and getattr(model, name) != getattr(default, name)
    ]
    if models.base is None and missing:
        raise ConfigError(
            f"nothing to train: set paths.models.base to a model directory, or for a model from "
            f"scratch add {', '.join(f'model.{name}' for name in missing)} to the recipe."
        )
    if models.base is not None and given:
        raise ConfigError(
            f"both a start and a shape are given: paths.models.base is '{models.base}', and the "
            f"recipe has {', '.join(f'model.{name}' for name in given)}. Remove one of them."
        )


def check_length(directory: Path, longest: int) -> None:
    """Refuse rows that are longer than a model can read.

    Raises:
        ConfigError: says how many tokens it takes.
    """
    most = read_config(directory).trunk.max_seq_length
    if longest > most:
        raise ConfigError(
            f"the model in '{directory}' reads at most {most} tokens at once, but the recipe has "
            f"rows of {longest}. Lower data.train.max_length and data.eval.max_length."
        )


def longest_row(recipe: Recipe) -> int:
    """Tokens of the longest row, in training or evaluation."""
    return max(recipe.data.train.max_length, recipe.data.eval.max_length or 0)


def open_tokenizer(settings: Settings) -> TextTokenizer:
    """The recipe's tokenizer, else that of the base model, else that of the training shards.

    Raises:
        ConfigError: none of these is there.
        DataError: it cannot be read.
    """
    path = settings.recipe.data.tokenizer or settings.config.paths.models.base
    if path is not None:
        return TextTokenizer.load(Path(path))
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
    return Source(named, spec.split, spec.format)


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
        ConfigError: the weighting needs a reference model or a column that is not there.
        DataError: the data cannot be used.
    """
    train = settings.recipe.data.train
    needs = settings.recipe.weighting.needs
    shards = prepare_cached(
        tuple(as_source(settings, spec) for spec in train.sources), tokenizer, cache, report
    )
    reference = None
    scores = None
    if "reference_ce" in needs:
        directory = settings.config.paths.models.ref
        if directory is None:
            raise ConfigError(
                f"weighting.algorithm {settings.algorithm} needs a reference model: set "
                "paths.models.ref to its directory (or export WMTP_REF with configs/local.yaml)."
            )
        check_reference(Path(directory), tokenizer, settings)
        scores = cached_scores(shards, reference_key(settings, shards, Path(directory)))
        if scores is None:
            report(f"reference {directory} runs at every step; wmtp data score would do it once")
            reference = load_reference(Path(directory), device, workspace)
        else:
            report(f"reference scores of {directory} are cached")
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


def open_model(
    settings: Settings, tokenizer: TextTokenizer, checkpoint: Path | None
) -> MultiTokenModel:
    """The model as training starts or goes on.

    Raises:
        CheckpointError: the directory cannot be loaded, or holds other heads.
        ConfigError: the sizes do not fit the tokenizer.
    """
    recipe, heads = settings.recipe, heads_shape(settings.recipe)
    start = checkpoint or settings.config.paths.models.base
    if checkpoint is not None:
        check_length(checkpoint, longest_row(recipe))
    if start is not None:
        model = load_model(
            Path(start),
            heads,
            seed=settings.config.devices.seed,
            dropout=recipe.model.dropout,
        )
    else:
        shape = trunk_shape(recipe, tokenizer.vocab_size)
        model = build_model(shape, heads, seed=settings.config.devices.seed)
    if model.trunk_shape.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"the model has {model.trunk_shape.vocab_size} token ids, but the tokenizer has "
            f"{tokenizer.vocab_size}. Use the model's own tokenizer, or a larger model.vocab_size."
        )
    return model


def heads_shape(recipe: Recipe) -> HeadsShape:
    """The recipe's heads."""
    heads = recipe.model.heads
    return HeadsShape(
        horizon=heads.horizon,
        hidden=heads.hidden,
        head_scale=recipe.head_scale,
        kind=heads.kind,
        context=heads.context,
    )


def trunk_shape(recipe: Recipe, vocab_size: int) -> LlamaShape:
    """The recipe's trunk from scratch; the MLP is 8/3 of the width, rounded up to 64s."""
    model = recipe.model
    assert model.hidden_size is not None
    assert model.num_layers is not None
    assert model.num_heads is not None
    return LlamaShape(
        vocab_size=model.vocab_size or vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size or math.ceil(model.hidden_size / 24) * 64,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_dim=model.hidden_size // model.num_heads,
        max_seq_length=model.max_seq_length or longest_row(recipe),
        rope_theta=model.rope_theta,
        norm_eps=1e-5,
        tie_embeddings=model.tie_embeddings,
        qk_norm=model.qk_norm,
        dropout=model.dropout,
    )
