"""A run's parts without their numbers: what a recipe asks for, on tensors that hold nothing.

Everything here is called inside a ``FakeTensorMode``. Of a model directory only ``config.json`` is
read, of the data nothing at all: rows of token 0 stand for them, each a document of its own in
which every target is valid, which is the most work that rows of that length can be.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from wmtp.config import Recipe, Settings
from wmtp.data.pairs import Pairs
from wmtp.data.reference import Reference
from wmtp.data.rows import DocumentRewards, Rows
from wmtp.data.shards import Column, Manifest, Shards
from wmtp.data.tokenizer import TextTokenizer
from wmtp.job import Job
from wmtp.loss import Workspace
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_config import read_config
from wmtp.model.llama import LlamaTrunk
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import TrunkKind
from wmtp.model.trunk import Trunk
from wmtp.model.value_head import ValueHead
from wmtp.opening.data import open_tokenizer
from wmtp.opening.model import heads_shape, trunk_shape
from wmtp.opening.model_names import model_directory
from wmtp.opening.rewards import ValueData
from wmtp.runtime.device import Device
from wmtp.weighting import Critic, find_critic


def build_job(
    settings: Settings,
    device: Device,
    steps: int,
    *,
    scores_cached: bool = True,
    vocab_size: int | None = None,
    tiled_attention: bool | None = None,
) -> Job:
    """The parts of a run of so many steps.

    Args:
        settings: what was asked for; ``use_torch_compile`` and sharding are passed over.
        device: where its tensors pretend to be.
        steps: optimizer steps that there must be rows for.
        scores_cached: the reference model's scores come with the data, if the weighting needs any;
            otherwise the model itself is there.
        vocab_size: of the tokenizer; None asks the recipe, the base model or the tokenizer itself.
        tiled_attention: attention is made in tiles; None as the device likes it.

    Raises:
        WmtpError: a config or tokenizer that the sizes depend on cannot be read.
    """
    recipe = settings.recipe
    with torch.device(device.torch_device):
        model = build_model(settings, vocab_size)
    model.set_gradient_checkpointing(recipe.train.gradient_checkpointing)
    tiled = device.tiled_attention if tiled_attention is None else tiled_attention
    model.set_tiled_attention(tiled)
    model.set_dropout(recipe.model.dropout)
    if recipe.train.freeze == "trunk":
        model.freeze_trunk()
    workspace = device.loss_workspace(recipe.loss.chunk_rows)
    critic = find_critic(recipe.weighting)
    value_head = None
    if critic is not None:
        with torch.device(device.torch_device):
            value_head = ValueHead(model.trunk_shape.hidden_size, critic.value_output)
    wants_scores = "reference_ce" in recipe.weighting.needs
    return Job(
        settings=in_this_process(settings),
        device=device,
        tokenizer=one_word_tokenizer(),
        model=model,
        train_rows=build_rows(recipe, steps, with_scores=wants_scores and scores_cached),
        eval_rows=None,
        reference=build_reference(settings, model, device, workspace)
        if wants_scores and not scores_cached
        else None,
        value_head=value_head,
        value_data=None,
        workspace=workspace,
        max_steps=steps,
    )


def in_this_process(settings: Settings) -> Settings:
    """The same settings with batches made where they are used: workers would have real ones."""
    train = settings.recipe.data.train.model_copy(update={"num_workers": 0})
    data = settings.recipe.data.model_copy(update={"train": train})
    recipe = settings.recipe.model_copy(update={"data": data})
    return settings.model_copy(update={"recipe": recipe})


def build_model(settings: Settings, vocab_size: int | None) -> MultiTokenModel:
    """The model that ``opening.model.open_model`` would give, without numbers.

    Raises:
        CheckpointError: a directory's config cannot be used.
    """
    recipe, base = settings.recipe, settings.config.paths.models.base
    if base is not None:
        return build_stored_model(model_directory(base), recipe, heads_shape(recipe))
    if vocab_size is None:
        vocab_size = recipe.model.vocab_size or open_tokenizer(settings).vocab_size
    shape = trunk_shape(recipe, vocab_size)
    if recipe.model.kind == "llama":
        return MultiTokenModel(LlamaTrunk(shape), heads_shape(recipe))
    return MultiTokenModel(hf_trunk_from_scratch(recipe, shape), heads_shape(recipe))


def build_stored_model(
    directory: Path, recipe: Recipe, heads: HeadsShape, kind: TrunkKind | None = None
) -> MultiTokenModel:
    """The model of a directory, of which the config alone is read.

    Raises:
        CheckpointError: the config cannot be used.
    """
    stored = read_config(directory, kind or recipe.model.kind)
    shape = stored.trunk
    if stored.kind == "llama":
        if recipe.model.final_norm_gain is False and shape.final_norm_gain:
            shape = without_gain(shape)
        return MultiTokenModel(LlamaTrunk(shape), heads)
    from wmtp.model.hf_trunk_directory import read_transformers_config

    return MultiTokenModel(_hf_trunk(read_transformers_config(directory), shape), heads)


def without_gain(shape: LlamaShape) -> LlamaShape:
    """The shape after the last norm's gain has moved into the unembedding."""
    return replace(shape, final_norm_gain=False, tie_embeddings=False)


def hf_trunk_from_scratch(recipe: Recipe, shape: LlamaShape) -> Trunk:
    """A trunk of transformers at the recipe's sizes.

    Raises:
        CheckpointError: transformers has no such architecture.
    """
    from wmtp.model.hf_trunk import hf_config_from_scratch, hf_shape  # transformers: seconds

    assert recipe.model.architecture is not None
    config = hf_config_from_scratch(
        recipe.model.architecture,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        max_seq_length=shape.max_seq_length,
        tie_embeddings=shape.tie_embeddings,
    )
    return _hf_trunk(config, hf_shape(config, f"model_type '{config.model_type}'"))


def _hf_trunk(config: object, shape: LlamaShape) -> Trunk:
    """A trunk of transformers that was not tried: without numbers there is nothing to try."""
    from transformers import AutoModelForCausalLM

    from wmtp.model.hf_trunk import HfTrunk
    from wmtp.model.transformers_calls import quiet_transformers

    with quiet_transformers():
        network = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    trunk = HfTrunk(network, shape)
    trunk.longest_packed_row = shape.max_seq_length
    return trunk


def build_reference(
    settings: Settings, model: MultiTokenModel, device: Device, workspace: Workspace
) -> Reference:
    """The recipe's reference model; one like the trunk itself where none is named.

    Raises:
        CheckpointError: the directory's config cannot be used.
    """
    recipe, name = settings.recipe, settings.config.paths.models.ref
    with torch.device(device.torch_device):
        if name is not None:
            directory = model_directory(name)
            kind = read_config(directory).kind
            found = build_stored_model(directory, recipe, HeadsShape(1), kind)
        elif isinstance(model.trunk, LlamaTrunk):
            found = MultiTokenModel(LlamaTrunk(model.trunk_shape), HeadsShape(1))
        else:
            found = build_model(settings, model.trunk_shape.vocab_size)
            found = MultiTokenModel(found.trunk, HeadsShape(1))
    return Reference(found, device, workspace)


def build_rows(recipe: Recipe, steps: int, *, with_scores: bool) -> Rows:
    """Rows enough for so many steps, with every column that the weighting needs."""
    train, needs = recipe.data.train, recipe.weighting.needs
    documents = recipe.rows_per_step * steps
    # packed rows follow each other, and heads look beyond the last one
    length = train.max_length if train.pack_sequences else train.max_length + 1
    tokens = documents * length + 1
    ends = np.append(np.arange(1, documents) * length, tokens)
    manifest = Manifest(
        tokenizer="", vocab_size=2**24, bos_ids=[], eos_id=0, dtype="uint32", tokens=tokens,
        documents=documents, tokens_sha256="",
    )  # fmt: skip

    def column() -> Column:
        return Column(Path(), "", np.broadcast_to(np.ones((), np.float16), tokens))

    critic = find_critic(recipe.weighting)
    shards = Shards(
        Path(),
        manifest,
        np.broadcast_to(np.zeros((), np.uint32), tokens),
        ends.astype(np.int64),
        wanted=None,
        loss_weights=column() if "loss_weights" in needs else None,
        rewards=None,
        groups=None,
    )
    return Rows(
        shards,
        train.max_length,
        packed=train.pack_sequences,
        with_loss_weights="loss_weights" in needs,
        reference_scores=column() if with_scores else None,
        rewards=None
        if critic is None
        else DocumentRewards(np.ones(documents, np.float32), critic.spread),
    )


def build_value_data(job: Job, critic: Critic) -> ValueData:
    """Documents for stage 1, as many right as wrong; each as long as a row."""
    rows = replace(job.train_rows, packed=False)
    half = len(rows) // 2
    ends = np.array([half])
    pairs = Pairs(np.arange(half), half + np.arange(half), ends, ends)
    return ValueData(rows, rows, pairs if critic.value_loss == "pairwise" else None)


def one_word_tokenizer() -> TextTokenizer:
    """What a job must have, and no training step asks."""
    return TextTokenizer(Tokenizer(WordLevel({"a": 0}, unk_token="a")), 0, {})
