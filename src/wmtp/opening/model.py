"""The model that a recipe asks for: from a checkpoint, from a pretrained start, or from scratch."""

import math
from pathlib import Path

from wmtp.config import Recipe, Settings
from wmtp.data.tokenizer import TextTokenizer
from wmtp.distributed.ranks import Ranks
from wmtp.distributed.sharding import shard_module
from wmtp.errors import ConfigError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import load_model
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, build_model
from wmtp.opening.checks import check_length, check_packing, longest_row
from wmtp.opening.model_names import model_directory
from wmtp.runtime.device import Device


def open_model(
    settings: Settings, tokenizer: TextTokenizer, checkpoint: Path | None
) -> MultiTokenModel:
    """The model as training starts or goes on.

    Raises:
        CheckpointError: the directory cannot be loaded, or holds other heads.
        ConfigError: the sizes do not fit the tokenizer.
    """
    recipe, heads = settings.recipe, heads_shape(settings.recipe)
    base = settings.config.paths.models.base
    start = checkpoint or (None if base is None else model_directory(base))
    if checkpoint is not None:
        check_length(checkpoint, longest_row(recipe), recipe.model.kind)
    if start is not None:
        model = load_model(
            start,
            heads,
            kind=recipe.model.kind,
            seed=settings.config.devices.seed,
            dropout=recipe.model.dropout,
            final_norm_gain=recipe.model.final_norm_gain,
        )
    else:
        model = build_from_scratch(settings, heads, tokenizer.vocab_size)
    if model.trunk_shape.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"the model has {model.trunk_shape.vocab_size} token ids, but the tokenizer has "
            f"{tokenizer.vocab_size}. Use the model's own tokenizer, or a larger model.vocab_size."
        )
    check_packing(model, recipe, str(start or f"model.architecture {recipe.model.architecture}"))
    return model


def place_model(model: MultiTokenModel, settings: Settings, device: Device, ranks: Ranks) -> None:
    """Bring a model to the device in place, in slices if the config shares it over ranks.

    Matrices of linear heads beside a frozen trunk stay whole: no backward pass reaches them, and
    slices are reduced in one.
    """
    fsdp = settings.config.devices.fsdp
    if ranks.count == 1 or not fsdp.enabled:
        model.to(device.torch_device)
        return
    heads = model.heads
    alone = heads is not None and model.trunk_frozen and model.heads_shape.kind == "linear"
    shard_module(
        model,
        model.blocks,
        ranks=ranks,
        device=device.torch_device,
        sharding=fsdp.sharding,
        other_forwards=("next_token_hidden",),
        whole=heads.parameters() if heads is not None and alone else (),
    )


def build_from_scratch(settings: Settings, heads: HeadsShape, vocab_size: int) -> MultiTokenModel:
    """A model of the recipe's sizes.

    Raises:
        CheckpointError: transformers cannot build the recipe's architecture.
    """
    recipe, seed = settings.recipe, settings.config.devices.seed
    shape = trunk_shape(recipe, vocab_size)
    if recipe.model.kind == "llama":
        return build_model(shape, heads, seed)
    from wmtp.model.hf_trunk import build_hf_model  # it imports transformers, which takes seconds

    assert recipe.model.architecture is not None
    return build_hf_model(recipe.model.architecture, shape, heads, seed)


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
        qk_norm=model.qk_norm and model.kind == "llama",
        final_norm_gain=model.final_norm_gain is not False,
        dropout=model.dropout,
    )
