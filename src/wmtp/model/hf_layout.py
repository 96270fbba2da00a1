"""A model as a Hugging Face directory: safetensors in and out, nothing else is ever opened.

The trunk has the names of Llama and Qwen3, so that a plain ``AutoModelForCausalLM`` loads it; the
heads lie at layer indices after the trunk's own, which such a load passes over with a warning.
For ``generate(use_mtp=True)`` in transformers those keys must be ignored on purpose::

    class Model(LlamaForCausalLM):
        _keys_to_ignore_on_load_unexpected = [r"model.layers.(30|31|32)."]  # N .. N+K-1
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape, HeadStart, initialize_heads_from_trunk
from wmtp.model.hf_config import (
    CONFIG_NAME,
    SpecialTokens,
    config_json,
    read_config,
    special_tokens_json,
)
from wmtp.model.multi_token import MultiTokenModel, empty_model, initialize_from_scratch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
MAX_SHARD_BYTES = 5_000_000_000


def load_model(
    directory: Path,
    heads: HeadsShape | None = None,
    *,
    seed: int = 0,
    head_start: HeadStart = "identity",
) -> MultiTokenModel:
    """Load a model directory with float32 parameters on the CPU.

    Args:
        directory: config and safetensors of a Llama, Mistral or Qwen3 model, ours or another's.
        heads: the heads that are wanted; None takes those that are stored. Where none are stored,
            new ones begin on the trunk.
        seed: of what the trunk does not give to new heads.
        head_start: how new heads begin, see ``initialize_heads_from_trunk``.

    Raises:
        CheckpointError: the directory cannot be used; the message says what was found.
    """
    stored = read_config(directory)
    shape = heads or stored.heads
    new_heads = stored.heads.horizon == 1 < shape.horizon
    if heads is not None and not new_heads:
        _check_heads(directory, heads, stored.heads)
    model = empty_model(stored.trunk, shape)
    _fill(model, directory, skip_heads=new_heads)
    if new_heads:
        assert model.heads is not None
        initialize_from_scratch(model.heads, torch.Generator().manual_seed(seed))
        initialize_heads_from_trunk(model.trunk, model.heads, head_start)
    return model


def save_model(
    model: MultiTokenModel,
    directory: Path,
    special_tokens: SpecialTokens,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config, generation config and weights into a folder, which is made.

    Tied matrices are stored once.

    Args:
        special_tokens: the tokenizer's, which engines look up in the config.
        max_shard_bytes: more goes into several files with an index.

    Raises:
        OSError, SafetensorError: the disk refused.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = config_json(model.trunk_shape, model.heads_shape, special_tokens, "float32")
    _write_json(directory / CONFIG_NAME, config)
    generation = {"_from_model_config": True, **special_tokens_json(special_tokens)}
    _write_json(directory / GENERATION_CONFIG, generation)
    shards = list(_shards(stored_tensors(model), max_shard_bytes))
    if len(shards) == 1:
        _save(shards[0], directory / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        _save(shard, directory / name)
    total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def stored_tensors(model: MultiTokenModel) -> dict[str, Tensor]:
    """Every tensor of a model directory under its name there; they share the model's memory."""
    layers = model.trunk_shape.num_layers
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.startswith("heads.depths."):
            depth, _, rest = name.removeprefix("heads.depths.").partition(".")
            tensors[f"model.layers.{layers + int(depth)}.{rest.removeprefix('block.')}"] = tensor
        elif name.startswith("trunk.lm_head."):
            tensors[name.removeprefix("trunk.")] = tensor
        else:
            tensors["model." + name.removeprefix("trunk.")] = tensor
    return tensors


def _check_heads(directory: Path, wanted: HeadsShape, found: HeadsShape) -> None:
    for key, ours, theirs in (
        ("horizon", wanted.horizon, found.horizon),
        ("hidden", wanted.hidden, found.hidden),
        ("kind", wanted.kind, found.kind),
        ("context", wanted.context, found.context),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"'{directory}' holds heads with {key} {theirs}, but model.heads.{key} is {ours}. "
                f"Set model.heads.{key}: {theirs}, or start from a directory without heads."
            )


@torch.no_grad()
def _fill(model: MultiTokenModel, directory: Path, *, skip_heads: bool) -> None:
    """Copy every stored tensor into the model, one at a time; other dtypes become float32."""
    wanted = stored_tensors(model)
    if skip_heads:
        first = model.trunk_shape.num_layers
        wanted = {n: t for n, t in wanted.items() if not _is_layer_from(n, first)}
    missing = set(wanted)
    unexpected = []
    for name, tensor in _read_tensors(directory):
        if name in missing:
            target = wanted[name]
            if tensor.shape != target.shape:
                raise CheckpointError(
                    f"'{directory}': {name} has shape {list(tensor.shape)}, but config.json "
                    f"means {list(target.shape)}."
                )
            if not tensor.is_floating_point():
                raise CheckpointError(f"'{directory}': {name} is {tensor.dtype}, not a float.")
            target.copy_(tensor)
            missing.discard(name)
        elif not _is_harmless(name, model):
            unexpected.append(name)
    for what, names in (("lacks", sorted(missing)), ("has no place for", unexpected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"'{directory}' {what} {', '.join(names[:3])}{more}: its weights do not fit its "
                f"{CONFIG_NAME}."
            )


def _is_layer_from(name: str, first: int) -> bool:
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and int(parts[2]) >= first


def _is_harmless(name: str, model: MultiTokenModel) -> bool:
    """Old files store what is computed, or a tied matrix twice."""
    return name.endswith("rotary_emb.inv_freq") or (
        name == "lm_head.weight" and model.trunk_shape.tie_embeddings
    )


def _read_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118  # not a dictionary
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _indexed_files(directory)
    pickles = sorted(
        path.name for end in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in directory.glob(end)
    )
    if pickles:
        raise CheckpointError(
            f"'{directory}' has its weights as a pickle ({pickles[0]}), which could run any "
            "program when opened and is never read. Convert it to safetensors first."
        )
    raise CheckpointError(f"'{directory}' has no {WEIGHTS} and no {INDEX}.")


def _indexed_files(directory: Path) -> list[Path]:
    path = directory / INDEX
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of safetensors files.") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise CheckpointError(f"{path} names the file '{name}', which is not beside it.")
        if not (directory / name).is_file():
            raise CheckpointError(f"{path} names the file '{name}', which is missing.")
    return [directory / name for name in names]


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        count = tensor.numel() * tensor.element_size()
        if shard and size + count > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += count
    yield shard


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
