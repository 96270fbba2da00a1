"""A model as a Hugging Face directory: read with care, written so that every engine reads it.

Tensors keep the names of Llama and Qwen3; depth ``k`` of the heads is layer ``N + k - 1`` after
the trunk's ``N`` layers. Nothing in a directory is run: no pickle, and no code from it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wmtp.errors import CheckpointError, StorageError
from wmtp.model.heads import HeadsShape, start_heads_on_trunk
from wmtp.model.hf_config import (
    CONFIG_NAME,
    SpecialTokens,
    config_json,
    read_config,
    special_tokens_json,
)
from wmtp.model.llama import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, empty_model, initialize_from_scratch
from wmtp.model.safetensors_writer import write_safetensors
from wmtp.model.stored_tensors import (
    INDEX_NAME,
    WEIGHTS_NAME,
    check_names,
    copy_tensors,
    tensor_files,
)

GENERATION_NAME = "generation_config.json"
SHARD_PATTERN = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5_000_000_000

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def load_model(
    directory: Path,
    heads: HeadsShape | None = None,
    *,
    trunk_only: bool = False,
    seed: int = 0,
    dropout: float = 0.0,
) -> MultiTokenModel:
    """Read a Llama, Mistral, Qwen3 or wmtp directory into a float32 model on the CPU.

    Heads stored in the directory are read. Where there are none and ``heads`` has some, new ones
    are started from the trunk.

    Args:
        directory: holds ``config.json`` and ``model.safetensors`` or its shards.
        heads: what the caller expects; None takes what is stored. Its ``head_scale``, if any,
            replaces the stored one.
        trunk_only: leave stored heads on the disk.
        seed: of the blocks of new heads.
        dropout: of the run that will train the model; not a property of the directory.

    Raises:
        CheckpointError: the directory, its config or its tensors cannot be used, or its heads are
            not those asked for.
        ValueError: ``heads`` are given together with ``trunk_only``.
    """
    if trunk_only and heads is not None:
        raise ValueError("trunk_only reads no heads, so none can be asked for")
    stored = read_config(directory)
    trunk_shape = replace(stored.trunk, dropout=dropout)
    stored_heads = HeadsShape(horizon=1) if trunk_only else stored.heads
    heads_shape = _agreed_heads(directory, stored_heads, heads)
    files = tensor_files(directory)

    model = empty_model(trunk_shape, heads_shape)
    wanted = {
        layout_name(name, trunk_shape.num_layers): tensor
        for name, tensor in model.state_dict().items()
    }
    if stored_heads.horizon == 1:  # new heads, if any, are not in the files
        wanted = {name: t for name, t in wanted.items() if _depth_of(name, trunk_shape) is None}
    ignored = _ignored_names(files, trunk_shape, trunk_only=trunk_only)
    check_names(directory, wanted.keys(), files.keys() - ignored)
    copy_tensors(files, wanted)
    if trunk_shape.tie_embeddings and "lm_head.weight" in files:
        _check_tied(files["lm_head.weight"], model)
    if model.heads is not None and stored_heads.horizon == 1:
        initialize_from_scratch(model.heads, torch.Generator().manual_seed(seed))
        start_heads_on_trunk(model.trunk, model.heads)
    return model


def save_model(
    model: MultiTokenModel,
    directory: Path,
    *,
    special_tokens: SpecialTokens,
    dtype: torch.dtype = torch.float32,
    extra_files: Sequence[Path] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    r"""Write a directory that ``transformers`` and other engines load as a Llama or a Qwen3.

    ``AutoModelForCausalLM.from_pretrained(directory)`` gives the trunk and mentions the heads'
    tensors as unexpected. To decode with the heads, tell that model which layers they are, here
    those of a trunk with 30 layers and horizon 4; no code from elsewhere is needed:

        model = AutoModelForCausalLM.from_pretrained(directory)
        model._keys_to_ignore_on_load_unexpected.add(r"model\.layers\.(30|31|32)\.")
        model.generate(**inputs, use_mtp=True, do_sample=False)

    The heads' drafts fit ``post_norm`` heads, and ``pre_norm`` ones where the final norms have no
    gain; the text is that of greedy decoding in any case.

    Not atomic: give it a directory that nobody reads yet, and rename that.

    Args:
        model: on any device; one tensor at a time comes to the CPU.
        directory: made if absent; a model in it is replaced.
        special_tokens: ids for ``config.json`` and ``generation_config.json``.
        dtype: of the stored weights; float32 keeps every bit.
        extra_files: copied beside the model, such as ``tokenizer_files``.
        max_shard_bytes: above this the weights are split into several files with an index.

    Raises:
        StorageError: something could not be written.
    """
    shape = model.trunk_shape
    config = config_json(shape, model.heads_shape, special_tokens, DTYPE_NAMES[dtype])
    tensors = {
        layout_name(name, shape.num_layers): tensor for name, tensor in model.state_dict().items()
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_weights(directory)
        _write_weights(directory, tensors, dtype, max_shard_bytes)
        _write_json(directory / GENERATION_NAME, special_tokens_json(special_tokens))
        for path in extra_files:
            shutil.copyfile(path, directory / path.name)
        _write_json(directory / CONFIG_NAME, config)
    except OSError as error:
        raise StorageError(f"The model could not be written to '{directory}': {error}.") from error


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """List the files of a model directory that belong to its tokenizer."""
    return tuple(directory / name for name in TOKENIZER_NAMES if (directory / name).is_file())


def layout_name(name: str, num_layers: int) -> str:
    """Translate one of our parameter names to the Hugging Face layout.

    Example:
        >>> layout_name("trunk.layers.3.mlp.up_proj.weight", num_layers=30)
        'model.layers.3.mlp.up_proj.weight'
        >>> layout_name("heads.depths.1.block.mlp.up_proj.weight", num_layers=30)
        'model.layers.31.mlp.up_proj.weight'
        >>> layout_name("heads.depths.1.eh_proj.weight", num_layers=30)
        'model.layers.31.eh_proj.weight'
    """
    if name.startswith("heads.depths."):
        index, rest = name.removeprefix("heads.depths.").split(".", 1)
        return f"model.layers.{num_layers + int(index)}.{rest.removeprefix('block.')}"
    inner = name.removeprefix("trunk.")
    return inner if inner.startswith("lm_head.") else f"model.{inner}"


def _depth_of(name: str, shape: LlamaShape) -> int | None:
    """Which depth of the heads a stored name belongs to, counted from 0."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"] or len(parts) < 3 or not parts[2].isdigit():
        return None
    depth = int(parts[2]) - shape.num_layers
    return depth if depth >= 0 else None


def _agreed_heads(directory: Path, stored: HeadsShape, asked: HeadsShape | None) -> HeadsShape:
    if asked is None:
        return stored
    if stored.horizon == 1:
        return asked
    for key, has, wants in (
        ("horizon", stored.horizon, asked.horizon),
        ("hidden", stored.hidden, asked.hidden),
        ("kind", stored.kind, asked.kind),
        ("context", stored.context, asked.context),
    ):
        if has != wants:
            raise CheckpointError(
                f"'{directory}' holds heads with {key} {has}, but model.heads.{key} is {wants}. "
                f"Set model.heads.{key}: {has}, or start from a directory without heads."
            )
    return replace(stored, head_scale=asked.head_scale or stored.head_scale)


def _ignored_names(files: Mapping[str, Path], shape: LlamaShape, *, trunk_only: bool) -> set[str]:
    """Stored names that nothing is lost without: old rotary tables, a second tied matrix."""
    return {
        name
        for name in files
        if name.endswith("rotary_emb.inv_freq")
        or (name == "lm_head.weight" and shape.tie_embeddings)
        or (trunk_only and _depth_of(name, shape) is not None)
    }


def _check_tied(path: Path, model: MultiTokenModel) -> None:
    """Refuse a second, different matrix: transformers would leave such a pair untied."""
    with safe_open(path, framework="pt") as file:
        stored_VD = file.get_tensor("lm_head.weight")
    if not torch.equal(stored_VD.float(), model.unembedding_VD):
        raise CheckpointError(
            f"{path}: lm_head.weight differs from the embedding, but {CONFIG_NAME} ties the two. "
            "Set tie_word_embeddings to false there."
        )


def _remove_weights(directory: Path) -> None:
    """Leave no shard or index of an earlier save to be taken for part of this one."""
    for path in (
        directory / WEIGHTS_NAME,
        directory / INDEX_NAME,
        *directory.glob(SHARD_PATTERN),
    ):
        path.unlink(missing_ok=True)


def _write_weights(
    directory: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int
) -> None:
    shards = _shards(tensors, dtype, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(directory / WEIGHTS_NAME, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / file_name, shard, dtype)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / INDEX_NAME, index)


def _shards(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int
) -> list[dict[str, Tensor]]:
    """Fill shards in order; a tensor larger than a shard gets one of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
