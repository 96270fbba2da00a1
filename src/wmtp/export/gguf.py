"""A model directory as one GGUF file, as llama.cpp and what is built on it read it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import CheckpointError, ConfigError
from wmtp.export.gguf_tensors import (
    EXACT_DEPTHS_OF_HY_V3,
    Architecture,
    NamedTensor,
    choose_architecture,
    file_tensors,
    settings,
)
from wmtp.export.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model
from wmtp.model.stored_config import StoredConfig
from wmtp.runtime.durable import storage_errors, temporary_beside, whole_file

if TYPE_CHECKING:
    from types import ModuleType

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
"""How matrices are stored; norms are float32 in any case."""

BLOCK_OF_Q8_0 = 32
"""Numbers that share a scale; a row holds a whole number of such blocks or is not quantized."""


def export_gguf(
    model_directory: Path, out: Path, *, dtype: Dtype = "f16", trunk_only: bool = False
) -> list[str]:
    """Write a model, its heads and its tokenizer to one file; the file is whole or not there.

    Sequential heads are written as llama.cpp drafts with them where it can, see
    ``choose_architecture``; the trunk alone can nearly always be written. The model is read into
    memory as float32, and each tensor is converted as it is written.

    Args:
        model_directory: with ``config.json``, weights and usually a tokenizer.
        out: the file; one that is there is replaced.
        dtype: of the matrices. With ``q8_0``, those whose rows are no multiple of 32 are f16.
        trunk_only: leave the heads out.

    Returns:
        Lines for the user: what was written, and what falls short.

    Raises:
        CheckpointError: the directory cannot be read, or llama.cpp does not run what is in it.
        ConfigError: the library ``gguf`` is not installed.
        DataError: the tokenizer cannot be read, or llama.cpp has none like it.
        StorageError: the file could not be written.
    """
    gguf = gguf_library()
    stored = read_config(model_directory)
    if stored.kind == "hf":
        raise CheckpointError(
            f"'{model_directory}' has a trunk that transformers runs; only Llama and Qwen3 trunks "
            "are exported to GGUF. llama.cpp's own convert_hf_to_gguf.py may know it."
        )
    heads = HeadsShape(horizon=1) if trunk_only else stored.heads
    architecture = choose_architecture(stored.trunk, heads)
    tokenizer = gguf_tokenizer(model_directory, stored)
    model = load_model(model_directory, trunk_only=trunk_only)
    tensors = list(file_tensors(architecture, stored.trunk, model.state_dict()))

    failure = f"'{out}' could not be written"
    with storage_errors(failure):
        out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(out)
    with storage_errors(failure), whole_file(out, temporary):
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            _describe(gguf, writer, model_directory, dtype)
            _write_settings(writer, architecture, stored, heads.horizon - 1)
            if tokenizer is not None:
                tokenizer.write(writer)
            else:
                writer.add_tokenizer_model("no_vocab")
            changed = _write_tensors(gguf, writer, tensors, dtype)
        finally:
            writer.close()
    size = out.stat().st_size
    return [
        f"wrote {out}: {architecture}, {dtype}, {len(tensors)} tensors, {size / 1e6:,.1f} MB",
        *_notes(architecture, stored, heads, tokenizer),
        *_note_of_rows(changed),
    ]


def gguf_library() -> "ModuleType":
    """The library that knows the file format.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ConfigError(
            "GGUF files need the library gguf, which is not installed. Install it with: "
            "pip install 'wmtp[gguf]'."
        ) from error
    library: ModuleType = gguf
    return library


def stored_type(shape: tuple[int, ...], dtype: Dtype) -> Dtype:
    """What a tensor of this shape becomes where matrices are to be ``dtype``.

    Example:
        >>> stored_type((576,), "q8_0"), stored_type((4, 64), "q8_0"), stored_type((64, 4), "q8_0")
        ('f32', 'q8_0', 'f16')
    """
    if len(shape) == 1:
        return "f32"
    return "f16" if dtype == "q8_0" and shape[1] % BLOCK_OF_Q8_0 else dtype


def _describe(gguf: "ModuleType", writer: Any, model_directory: Path, dtype: Dtype) -> None:
    file_types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(model_directory.resolve().name)
    writer.add_file_type(file_types[dtype])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_settings(
    writer: Any, architecture: Architecture, stored: StoredConfig, depths: int
) -> None:
    for name, value in settings(architecture, stored.trunk, depths).items():
        key = f"{architecture}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)


def _write_tensors(
    gguf: "ModuleType", writer: Any, tensors: Sequence[NamedTensor], dtype: Dtype
) -> list[str]:
    """Write the tensors one by one; names of those that got another type than was asked for."""
    types = {tensor.name: stored_type(tensor.shape, dtype) for tensor in tensors}
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[types[tensor.name].upper()]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(tensor.shape)) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[types[tensor.name].upper()]
        writer.write_tensor_data(_converted(gguf, tensor, kind))
    return [t.name for t in tensors if len(t.shape) > 1 and types[t.name] != dtype]


def _converted(gguf: "ModuleType", tensor: NamedTensor, kind: Any) -> NDArray[Any]:
    numbers: NDArray[np.float32] = np.ascontiguousarray(tensor.make().detach().float().numpy())
    if not np.isfinite(numbers).all():
        raise CheckpointError(f"{tensor.name} has numbers that are not finite.")
    if kind.name in ("F16", "Q8_0") and np.abs(numbers).max(initial=0) > np.finfo(np.float16).max:
        # the scale of a q8_0 block is a float16 of a 127th of its largest number
        limit = float(np.finfo(np.float16).max) * (127 if kind.name == "Q8_0" else 1)
        if np.abs(numbers).max() > limit:
            raise CheckpointError(
                f"{tensor.name} has a number too large for {kind.name.lower()}. Export with "
                "--dtype bf16."
            )
    converted: NDArray[Any] = gguf.quants.quantize(numbers, kind)
    return converted


def _notes(
    architecture: Architecture,
    stored: StoredConfig,
    heads: HeadsShape,
    tokenizer: GgufTokenizer | None,
) -> Iterator[str]:
    depths = heads.horizon - 1
    usable = min(depths, EXACT_DEPTHS_OF_HY_V3) if architecture == "hy_v3" else depths
    if depths:
        yield (
            f"{depths} heads beyond the next token: llama-server --spec-type draft-mtp "
            f"--spec-draft-n-max {usable}"
        )
    elif stored.heads.horizon > 1:
        yield f"the trunk alone: {stored.heads.horizon - 1} {stored.heads.kind} heads left out"
    if usable < depths:
        yield (
            f"falls short: llama.cpp's hy_v3 drafts exactly to depth {usable}; what it feeds depth "
            f"{usable + 1} is another row's state, so draft no more than {usable}"
        )
    if depths > 1 and heads.context == "chained":
        yield (
            "falls short: llama.cpp drafts in the context trunk, and these heads were trained in "
            "the context chained: fewer drafts are accepted from depth 2 on, while the text stays "
            "right. Train with heads.context: trunk or mix"
        )
    if tokenizer is None:
        yield "falls short: the directory has no tokenizer.json, so the file takes token ids only"
    else:
        yield from tokenizer.notes


def _note_of_rows(changed: Sequence[str]) -> Iterator[str]:
    if changed:
        yield (
            f"falls short: {len(changed)} matrices are f16, not q8_0: their rows are no multiple "
            f"of {BLOCK_OF_Q8_0} ({changed[0]}, ...)"
        )
