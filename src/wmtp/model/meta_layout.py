"""The layout of Meta's multi-token checkpoints: ``params.json`` and ``extra_heads.*``.

The tensors must lie in safetensors: what Meta ships is a pickle, which is never opened here. The
attention's rows are ordered for rotating neighbours (0, 1), (2, 3), ...; ours are ordered for
rotating halves (0, C/2), (1, C/2 + 1), ... Head 0 is the last of ``layers``, the others are
``extra_heads``, and one norm serves them all.

Source:
    The code beside the checkpoints of Gloeckle et al. 2024 (arXiv:2404.19737).
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.model.heads.base import HeadsShape
from wmtp.model.llama_shape import LARGEST_LENGTH, LARGEST_WIDTH, LlamaShape
from wmtp.model.stored_tensors import open_tensors, tensor_files
from wmtp.untrusted import read_json

PARAMS_NAME = "params.json"
DEFAULT_LENGTH = 4096

BLOCK_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
OUTER_NAMES = {
    "trunk.embed_tokens.weight": "tok_embeddings.weight",
    "trunk.norm.weight": "norm.weight",
    "trunk.lm_head.weight": "output.weight",
}


class _Params(BaseModel):
    """The keys of ``params.json`` that the tensors' shapes do not tell."""

    dim: int = Field(ge=8, le=LARGEST_WIDTH)
    n_heads: int = Field(ge=1, le=LARGEST_WIDTH)
    n_kv_heads: int | None = Field(None, ge=1, le=LARGEST_WIDTH)
    norm_eps: float = Field(1e-5, gt=0)
    rope_theta: float = Field(10000.0, gt=1)
    max_seq_len: int = Field(DEFAULT_LENGTH, ge=2, le=LARGEST_LENGTH)


def is_meta_directory(directory: Path) -> bool:
    """Whether a directory is in Meta's layout and not also in that of Hugging Face."""
    return (directory / PARAMS_NAME).is_file() and not (directory / "config.json").is_file()


def read_meta_shapes(directory: Path) -> tuple[LlamaShape, HeadsShape]:
    """Shapes from ``params.json`` and the tensors' names.

    Raises:
        CheckpointError: the tensors are pickled, or the two do not make a model.
    """
    path = directory / PARAMS_NAME
    try:
        params = _Params.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        said = str(error).replace("\n", " ")
        raise CheckpointError(f"{path} is not a file of Meta's parameters: {said}.") from error
    files = tensor_files(directory)
    layers, extra = _count(files, "layers."), _count(files, "extra_heads.")
    if not layers or "tok_embeddings.weight" not in files:
        raise CheckpointError(
            f"'{directory}' has {PARAMS_NAME}, but no tensors named tok_embeddings and layers."
        )
    first = "layers.0.feed_forward.w1.weight"
    try:
        trunk = LlamaShape(
            vocab_size=_rows_of(files, "tok_embeddings.weight"),
            hidden_size=params.dim,
            intermediate_size=_rows_of(files, first),
            num_layers=layers,
            num_heads=params.n_heads,
            num_kv_heads=params.n_kv_heads or params.n_heads,
            head_dim=params.dim // params.n_heads,
            max_seq_length=params.max_seq_len,
            rope_theta=params.rope_theta,
            norm_eps=params.norm_eps,
            tie_embeddings=False,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    return trunk, HeadsShape(horizon=extra + 1, kind="parallel")


def meta_name(name: str) -> str | None:
    """Translate one of our parameter names; None for a head's norm, which Meta shares.

    Example:
        >>> meta_name("trunk.layers.3.mlp.up_proj.weight")
        'layers.3.feed_forward.w3.weight'
        >>> meta_name("heads.heads.1.block.self_attn.q_proj.weight")
        'extra_heads.1.attention.wq.weight'
    """
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    if name.startswith("trunk.layers."):
        index, rest = name.removeprefix("trunk.layers.").split(".", 1)
        return f"layers.{index}.{BLOCK_NAMES[rest.removesuffix('.weight')]}.weight"
    index, rest = name.removeprefix("heads.heads.").split(".", 1)
    if not rest.startswith("block."):
        return None
    inner = rest.removeprefix("block.").removesuffix(".weight")
    return f"extra_heads.{index}.{BLOCK_NAMES[inner]}.weight"


def rotate_by_halves(weight_ED: Tensor, head_dim: int) -> Tensor:
    """Reorder rows of a query or key projection from neighbouring pairs to halves.

    Example:
        >>> import torch
        >>> rotate_by_halves(torch.arange(4.0)[:, None], head_dim=4).flatten()
        tensor([0., 2., 1., 3.])
    """
    heads_NPQD = weight_ED.view(-1, head_dim // 2, 2, weight_ED.shape[1])
    return heads_NPQD.transpose(1, 2).reshape(weight_ED.shape)


def _count(files: Mapping[str, Path], prefix: str) -> int:
    """How many numbered parts a prefix has; they must be 0, 1, 2, ..."""
    found = {name.removeprefix(prefix).split(".")[0] for name in files if name.startswith(prefix)}
    return len(found)


def _rows_of(files: Mapping[str, Path], name: str) -> int:
    if name not in files:
        raise ValueError(f"there is no tensor {name}")
    with open_tensors(files[name]) as file:
        return int(file.get_slice(name).get_shape()[0])
