"""A model as a directory: read with care, written so that every engine reads it.

The trunk's tensors keep the names that their architecture gives them, so that the trunk loads in
plain ``transformers``; how heads are named beside them is in ``stored_names.py``. Nothing in a
directory is run: no pickle, and no code from it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wmtp.distributed.sharding import own_part
from wmtp.errors import CheckpointError, StorageError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_config import read_config
from wmtp.model.llama import LlamaTrunk
from wmtp.model.llama_config import MTP_LLAMA, config_json, mtp_llama_json
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.meta_layout import meta_name, rotate_by_halves
from wmtp.model.multi_token import (
    MultiTokenModel,
    attach_heads,
    empty_model,
    initialize_from_scratch,
    without_final_gain,
)
from wmtp.model.stored_config import SpecialTokens, StoredConfig, TrunkKind, special_tokens_json
from wmtp.model.stored_names import MTP_LLAMA_NORM, foreign_name, is_of_heads, layout_name
from wmtp.model.stored_tensors import (
    CONFIG_NAME,
    INDEX_NAME,
    WEIGHTS_NAME,
    check_names,
    copy_tensors,
    open_tensors,
    tensor_files,
)
from wmtp.safetensors_writer import write_safetensors

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
    kind: TrunkKind | None = None,
    trunk_only: bool = False,
    seed: int = 0,
    dropout: float = 0.0,
    final_norm_gain: bool | None = None,
) -> MultiTokenModel:
    """Read a model directory into a float32 model on the CPU.

    Llama, Mistral, Qwen3, ``mtp_llama`` and Meta's layout become our own trunk, all else a trunk
    run by ``transformers``. Heads stored in the directory are read. Where there are none and
    ``heads`` has some, new ones are started from the trunk.

    Args:
        directory: holds ``config.json`` (or Meta's ``params.json``) and ``model.safetensors`` or
            its shards.
        heads: what the caller expects; None takes what is stored. Its ``head_scale``, if any,
            replaces the stored one.
        kind: whose code is to run the trunk; None takes our own where it can.
        trunk_only: leave stored heads on the disk.
        seed: of the blocks of new heads.
        dropout: of the run that will train the model; not a property of the directory.
        final_norm_gain: what the caller expects of the norms before the unembedding; None takes
            what is stored. Where a llama trunk has a gain and is to have none, its gain moves into
            the unembedding, which is then a matrix of its own; the trunk computes the same.

    Raises:
        CheckpointError: the directory, its config or its tensors cannot be used, or its heads or
            norms are not those asked for.
        ValueError: ``heads`` are given together with ``trunk_only``.
    """
    if trunk_only and heads is not None:
        raise ValueError("trunk_only reads no heads, so none can be asked for")
    stored = read_config(directory, kind)
    stored_heads = HeadsShape(horizon=1) if trunk_only else stored.heads
    heads_shape = _agreed_heads(directory, stored_heads, heads)
    _check_gain(directory, stored, stored_heads, final_norm_gain)
    load = _load_hf_trunk if stored.kind == "hf" else _load_llama
    model = load(directory, stored, heads_shape, stored_heads, seed)
    if final_norm_gain is False and stored.trunk.final_norm_gain:
        model = without_final_gain(model)
    model.set_dropout(dropout)
    if model.heads is not None and stored_heads.horizon == 1:
        initialize_from_scratch(model.heads, torch.Generator().manual_seed(seed))
        model.heads.start_on(model.trunk)
    return model


def _load_llama(
    directory: Path, stored: StoredConfig, heads: HeadsShape, stored_heads: HeadsShape, _seed: int
) -> MultiTokenModel:
    shape = stored.trunk
    files = tensor_files(directory)
    if shape.num_layers + stored_heads.horizon - 1 > len(files):  # before they are built
        raise CheckpointError(
            f"'{directory}' has {len(files)} tensors, too few for {shape.num_layers} layers and "
            f"{stored_heads.horizon} heads: its weights do not fit its {CONFIG_NAME}."
        )
    model = empty_model(shape, heads)
    has_heads = stored_heads.horizon > 1
    wanted = {
        stored_name: tensor
        for name, tensor in model.state_dict().items()
        if (has_heads or not name.startswith("heads."))
        and (stored_name := _stored_name(name, shape, stored.layout)) is not None
    }
    heads_left = stored.heads.horizon > 1 and not has_heads
    ignored = _ignored_names(files, stored, heads_left=heads_left)
    check_names(directory, wanted.keys(), files.keys() - ignored)
    copy_tensors(files, wanted)
    if shape.tie_embeddings and "lm_head.weight" in files:
        _check_tied(files["lm_head.weight"], model)
    if stored.layout == "meta":
        _from_meta(model)
    return model


def _load_hf_trunk(
    directory: Path, stored: StoredConfig, heads: HeadsShape, stored_heads: HeadsShape, seed: int
) -> MultiTokenModel:
    if heads.hidden == "pre_norm" and heads.kind == "sequential" and heads.horizon > 1:
        raise CheckpointError(
            f"model.heads.hidden is pre_norm, but the trunk of '{directory}' is run by "
            "transformers and shows its output after the last norm only. Set it to post_norm."
        )
    from wmtp.model.hf_trunk_directory import load_hf_trunk  # it imports transformers: seconds

    trunk, unexpected = load_hf_trunk(directory, stored.trunk)
    model = attach_heads(trunk, heads, seed)
    wanted = {}
    if model.heads is not None and stored_heads.horizon > 1:
        wanted = {
            foreign_name(f"heads.{name}"): tensor
            for name, tensor in model.heads.state_dict().items()
        }
    if stored_heads.horizon > 1 or stored.heads.horizon == 1:
        check_names(directory, wanted.keys(), unexpected)
    if wanted:
        files = tensor_files(directory)
        copy_tensors({name: files[name] for name in wanted}, wanted)
    return model


def _stored_name(name: str, shape: LlamaShape, layout: str) -> str | None:
    if layout == "meta":
        return meta_name(name)
    if layout == "mtp_llama" and name == "trunk.norm.weight":
        return MTP_LLAMA_NORM
    return layout_name(name, shape.num_layers)


@torch.no_grad()
def _from_meta(model: MultiTokenModel) -> None:
    """Reorder the rows of rotated projections, and give every head the one norm there is."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor.copy_(rotate_by_halves(tensor.clone(), model.trunk_shape.head_dim))
        elif name.startswith("heads.") and name.endswith(".norm.weight"):
            tensor.copy_(model.trunk.final_gain_D())


def save_model(
    model: MultiTokenModel,
    directory: Path,
    *,
    special_tokens: SpecialTokens,
    dtype: torch.dtype = torch.float32,
    extra_files: Sequence[Path] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    layout: Literal["hf", "mtp_llama"] = "hf",
) -> None:
    r"""Write a directory that ``transformers`` and other engines load as what the trunk is.

    ``AutoModelForCausalLM.from_pretrained(directory)`` gives the trunk and mentions the heads'
    tensors as unexpected. To decode with sequential heads of our own trunk, tell that model which
    layers they are, here those of a trunk with 30 layers and horizon 4; no code from elsewhere is
    needed:

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
        layout: ``mtp_llama`` writes a Llama with parallel heads for the code of that name.

    Raises:
        StorageError: something could not be written.
        ValueError: the model does not fit the layout.
    """
    stored = stored_form(model, special_tokens=special_tokens, dtype=dtype, layout=layout)
    try:
        stored.write(directory, extra_files=extra_files, max_shard_bytes=max_shard_bytes)
    except OSError as error:
        raise StorageError(f"The model could not be written to '{directory}': {error}.") from error


@dataclass(frozen=True)
class StoredForm:
    """A model as its directory will hold it; the tensors are the model's own, and move with it.

    Attributes:
        config: ``config.json``.
        tensors: by their stored names, in the order of the files.
        dtype: of the stored weights.
    """

    config: dict[str, object]
    tensors: dict[str, Tensor]
    special_tokens: SpecialTokens
    dtype: torch.dtype

    def write(
        self,
        directory: Path,
        *,
        extra_files: Sequence[Path] = (),
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """Write the directory, moving one tensor at a time to the CPU; as ``save_model``.

        Raises:
            OSError: something could not be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        _remove_weights(directory)
        _write_weights(directory, self.tensors, self.dtype, max_shard_bytes)
        _write_json(directory / GENERATION_NAME, special_tokens_json(self.special_tokens))
        for path in extra_files:
            shutil.copyfile(path, directory / path.name)
        _write_json(directory / CONFIG_NAME, self.config)


def stored_form(
    model: MultiTokenModel,
    *,
    special_tokens: SpecialTokens,
    dtype: torch.dtype = torch.float32,
    layout: Literal["hf", "mtp_llama"] = "hf",
) -> StoredForm:
    """What ``save_model`` would write, before it is written.

    Raises:
        ValueError: the model does not fit the layout.
    """
    config, tensors = _contents(model, special_tokens, DTYPE_NAMES[dtype], layout)
    return StoredForm(config, tensors, special_tokens, dtype)


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """List the files of a model directory that belong to its tokenizer."""
    return tuple(directory / name for name in TOKENIZER_NAMES if (directory / name).is_file())


def _contents(
    model: MultiTokenModel, special_tokens: SpecialTokens, dtype: str, layout: str
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """``config.json`` and the named tensors of a directory."""
    shape, heads = model.trunk_shape, model.heads_shape
    if not isinstance(model.trunk, LlamaTrunk):
        from wmtp.model.hf_trunk import HfTrunk
        from wmtp.model.hf_trunk_directory import hf_trunk_config_json

        assert isinstance(model.trunk, HfTrunk)
        if layout != "hf":
            raise ValueError(f"layout {layout} is for a llama trunk")
        config = hf_trunk_config_json(model.trunk, heads, special_tokens, dtype)
        return config, _without_twins(
            {foreign_name(name): tensor for name, tensor in model.state_dict().items()}
        )
    if layout == MTP_LLAMA:
        if (heads.kind != "parallel" and heads.horizon > 1) or shape.qk_norm:
            raise ValueError("layout mtp_llama is for parallel heads and a trunk without QK-norm")
        config = mtp_llama_json(shape, heads, special_tokens, dtype)
    else:
        config = config_json(shape, heads, special_tokens, dtype)
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored_name = _stored_name(name, shape, layout)
        assert stored_name is not None
        tensors[stored_name] = tensor
    return config, tensors


def _without_twins(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out a second name of the same memory: tied matrices are stored once."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        address = own_part(tensor).data_ptr()
        if address not in seen:
            kept[name] = tensor
        if address:  # a rank may have nothing of a small tensor
            seen.add(address)
    return kept


def _agreed_heads(directory: Path, stored: HeadsShape, asked: HeadsShape | None) -> HeadsShape:
    if asked is None:
        return stored
    if stored.horizon == 1:
        return asked
    for key, has, wants in (
        ("kind", stored.kind, asked.kind),
        ("horizon", stored.horizon, asked.horizon),
        ("hidden", stored.hidden, asked.hidden),
    ):
        if has != wants and (asked.kind == "sequential" or key in ("kind", "horizon")):
            raise CheckpointError(
                f"'{directory}' holds heads with {key} {has}, but model.heads.{key} is {wants}. "
                f"Set model.heads.{key}: {has}, or start from a directory without heads."
            )
    # no tensor depends on the context: heads may be trained on in another one
    scale = asked.head_scale or stored.head_scale
    return replace(stored, head_scale=scale, context=asked.context)


def _check_gain(
    directory: Path, stored: StoredConfig, heads: HeadsShape, asked: bool | None
) -> None:
    if asked is None or asked == stored.trunk.final_norm_gain:
        return
    if asked:
        raise CheckpointError(
            f"'{directory}' has no gain in its last norm, but model.final_norm_gain is true. "
            "Leave the key out."
        )
    if stored.kind == "hf" or heads.horizon > 1:
        what = "is run by transformers" if stored.kind == "hf" else "has heads with gains"
        raise CheckpointError(
            f"'{directory}' {what}: model.final_norm_gain cannot be false. Leave the key out."
        )


def _ignored_names(
    files: Mapping[str, Path], stored: StoredConfig, *, heads_left: bool
) -> set[str]:
    """Stored names that nothing is lost without: old rotary tables, a second tied matrix."""
    return {
        name
        for name in files
        if name.endswith(("rotary_emb.inv_freq", "rope.freqs"))
        or (name == "lm_head.weight" and stored.trunk.tie_embeddings)
        or (heads_left and is_of_heads(name, stored.trunk.num_layers))
    }


def _check_tied(path: Path, model: MultiTokenModel) -> None:
    """Refuse a second, different matrix: transformers would leave such a pair untied."""
    with open_tensors(path) as file:
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
