"""From settings to everything a run needs, with all that can be checked checked first."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmtp import __version__
from wmtp.config import Recipe, Settings
from wmtp.data.batches import Batch, evaluation_batches
from wmtp.data.loading import check_workers_can_read, load_batches
from wmtp.data.reference import Reference
from wmtp.data.rows import Rows
from wmtp.data.shards import Shards
from wmtp.data.share import StepShare, share_of_step
from wmtp.data.tokenizer import TextTokenizer
from wmtp.distributed.ranks import ALONE, Ranks
from wmtp.loss import Workspace
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.value_head import ValueHead, build_value_head
from wmtp.opening.checks import check_start
from wmtp.opening.data import (
    Report,
    is_prepared,
    open_evaluation_data,
    open_tokenizer,
    open_training_data,
    shard_cache,
)
from wmtp.opening.model import open_model, place_model
from wmtp.opening.rewards import ValueData, describe_rewards, document_rewards, open_value_data
from wmtp.runtime.device import Device, choose_device
from wmtp.weighting import find_critic


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
        value_head: estimates of how well a document ends, if the weighting needs them; what is in
            it comes from stage 1 or a checkpoint.
        value_data: what it learns from in stage 1, if that is still to be done.
        workspace: scratch memory of the loss.
        max_steps: optimizer steps of the whole run.
        ranks: the processes that share the run; the model may be sliced over them.
    """

    settings: Settings
    device: Device
    tokenizer: TextTokenizer
    model: MultiTokenModel
    train_rows: Rows
    eval_rows: Rows | None
    reference: Reference | None
    value_head: ValueHead | None
    value_data: ValueData | None
    workspace: Workspace
    max_steps: int
    ranks: Ranks = ALONE

    @property
    def rows_per_step(self) -> int:
        """Rows of data in one optimizer step, over all ranks."""
        return self.settings.recipe.rows_per_step

    @property
    def shards(self) -> list[Shards]:
        """The tokenized data of training and evaluation."""
        rows = [self.train_rows, *([self.eval_rows] if self.eval_rows else [])]
        return [one.shards for one in rows]

    @property
    def share(self) -> StepShare:
        """The rows of each step that this rank reads."""
        return share_of_recipe(self.settings.recipe, self.ranks)

    def training_batches(
        self, start_row: int, share: StepShare | None = None
    ) -> AbstractContextManager[Iterator[Batch]]:
        """Micro-batches of this rank, or of a share of its own, from a step's first row on."""
        train = self.settings.recipe.data.train
        return load_batches(
            self.train_rows,
            seed=self.settings.config.devices.seed,
            start_row=start_row,
            share=share or self.share,
            horizon=self.model.horizon,
            num_workers=train.num_workers,
            prefetch_factor=train.prefetch_factor,
            pin_memory=self.device.pin_memory,
        )

    def evaluation_batches(self) -> Iterator[Batch]:
        """The part of the evaluation data that this rank measures."""
        assert self.eval_rows is not None
        data = self.settings.recipe.data.eval
        return evaluation_batches(
            self.eval_rows,
            batch_size=data.batch_size,
            horizon=self.model.horizon,
            max_rows=data.max_rows,
            rank=self.ranks.index,
            ranks=self.ranks.count,
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
            "ranks": self.ranks.count,
            "parameters": self.model.num_parameters,
            "max_steps": self.max_steps,
            "training_rows": len(self.train_rows),
            "tokenizer": self.tokenizer.fingerprint,
            "reference_scores": "computed at each step" if self.reference else "cached or none",
        }


def share_of_recipe(recipe: Recipe, ranks: Ranks) -> StepShare:
    """The rows of each step that one rank reads.

    Raises:
        ConfigError: the ranks cannot share them equally.
    """
    return share_of_step(recipe.rows_per_step, recipe.micro_batch_rows, ranks.index, ranks.count)


def open_device(settings: Settings) -> Device:
    """The device that the config asks for.

    Raises:
        DeviceError: this machine lacks it, or it cannot train in the way that is asked for.
    """
    devices = settings.config.devices
    device = choose_device(devices.compute_backend, devices.mixed_precision)
    device.check_training(sliced=devices.fsdp.enabled, compiled=devices.use_torch_compile)
    return device


@contextmanager
def assembled(
    settings: Settings,
    report: Report,
    checkpoint: Path | None = None,
    *,
    ranks: Ranks = ALONE,
    keep_shards: bool = True,
) -> Iterator[Job]:
    """Build a run's parts, cheap and likely faults first, the model's weights last.

    Args:
        settings: what was asked for.
        report: takes a line about what is being done.
        checkpoint: where the model's weights come from instead of the recipe's start.
        ranks: who shares the run; all of them call this.
        keep_shards: tokenized data stays under the base path for the next run.

    Raises:
        WmtpError: something that was asked for is not there or does not fit together.
    """
    config, recipe = settings.config, settings.recipe
    device = open_device(settings)
    check_start(settings)
    share_of_recipe(recipe, ranks)  # refuses what cannot be shared, before anything is read
    tokenizer = open_tokenizer(settings)
    workspace = device.loss_workspace(recipe.loss.chunk_rows)
    with tempfile.TemporaryDirectory() as temporary:
        kept = keep_shards or is_prepared(settings, tokenizer)
        cache = shard_cache(settings) if kept else Path(temporary)
        with ranks.first_before_others():  # what the first tokenizes, the others find
            train_rows, reference = open_training_data(
                settings, tokenizer, cache, device, workspace, report
            )
            eval_rows = open_evaluation_data(settings, tokenizer, cache, report)
        value_data = None
        critic = find_critic(recipe.weighting)
        if critic is not None:
            with ranks.first_before_others():
                rewards = document_rewards(
                    settings, critic, train_rows.shards, tokenizer, device, report
                )
            report(describe_rewards(rewards))
            train_rows = replace(train_rows, rewards=rewards)
            if critic.value_head is None and checkpoint is None:
                with ranks.first_before_others():
                    value_data = open_value_data(settings, critic, tokenizer, cache, device, report)
        if recipe.data.train.num_workers:
            check_workers_can_read(train_rows)
        steps = recipe.train.max_steps or math.ceil(
            (recipe.train.num_epochs or 1) * len(train_rows) / recipe.rows_per_step
        )
        device.seed(config.devices.seed)
        model = open_model(settings, tokenizer, checkpoint)
        model.set_gradient_checkpointing(recipe.train.gradient_checkpointing)
        model.set_tiled_attention(device.tiled_attention)
        if not model.trunk.attention_is_lean and not recipe.train.gradient_checkpointing:
            report(
                "this trunk's attention keeps the scores of all pairs of positions on this device: "
                "train.gradient_checkpointing: true makes them anew instead"
            )
        if recipe.train.freeze == "trunk":
            model.freeze_trunk()
        if config.devices.use_torch_compile:
            model.compile_trunk()
        if device.save_memory_if_short_for(rough_peak(model, recipe)):
            report(
                "memory is short for this model: what is freed is given back at once, which takes "
                "time; a run with twice the memory that it needs goes faster"
            )
        place_model(model, settings, device, ranks)
        if config.devices.fsdp.enabled and ranks.count == 1:
            report("one process: there is nothing to slice; torchrun starts several")
        device.seed(config.devices.seed + ranks.index)  # dropout differs from rank to rank
        report(f"model: {model.num_parameters:,} parameters on {device.name}{shared(ranks)}")
        value_head = None
        if critic is not None:
            width, output = model.trunk_shape.hidden_size, critic.value_output
            value_head = build_value_head(width, output, config.devices.seed)
            value_head.to(device.torch_device)
        yield Job(
            settings=settings,
            device=device,
            tokenizer=tokenizer,
            model=model,
            train_rows=train_rows,
            eval_rows=eval_rows,
            reference=reference,
            value_head=value_head,
            value_data=value_data,
            workspace=workspace,
            max_steps=steps,
            ranks=ranks,
        )


def rough_peak(model: MultiTokenModel, recipe: Recipe) -> int:
    """Bytes that a run will hold at its peak, roughly: ``wmtp plan`` says it exactly, but slowly.

    Weights, gradients, AdamW's two moments, and for each token and block what 28 vectors of float32
    take (4 where blocks are recomputed), as it was found with ``benchmarks/memory.py``.
    """
    held = sum(p.nbytes * (4 if p.requires_grad else 1) for p in model.parameters())
    shape = model.trunk_shape
    blocks = shape.num_layers + model.horizon - 1
    vectors = blocks * (4 if recipe.train.gradient_checkpointing else 28)
    positions = recipe.micro_batch_rows * recipe.data.train.max_length
    return held + positions * vectors * shape.hidden_size * 4


def shared(ranks: Ranks) -> str:
    """How many ranks there are, for a person."""
    return f", {ranks.count} ranks" if ranks.count > 1 else ""
