"""What model directories of every kind have in common: JSON, special tokens, our own section."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from wmtp.errors import CheckpointError
from wmtp.model.heads import Context, HeadsShape, Hidden, Kind
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.stored_tensors import CONFIG_NAME
from wmtp.untrusted import read_json as read_any_json

MOST_HEADS = 64

TrunkKind = Literal["llama", "hf"]
"""Our own decoder, or the code of ``transformers``."""


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a meaning of their own; None and empty where there is none."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None


@dataclass(frozen=True)
class StoredConfig:
    """What ``config.json`` says about a model.

    Attributes:
        trunk: shape of the trunk.
        heads: shape of the stored heads; its horizon is 1 where there are none.
        special_tokens: ids of the tokenizer's special tokens.
        kind: whose code runs the trunk.
        layout: how the tensors are named.
    """

    trunk: LlamaShape
    heads: HeadsShape
    special_tokens: SpecialTokens
    kind: TrunkKind = "llama"
    layout: Literal["hf", "mtp_llama", "meta"] = "hf"


class MtpConfig(BaseModel):
    """The section that only wmtp writes."""

    kind: Kind
    horizon: int = Field(ge=1, le=MOST_HEADS)
    hidden: Hidden = "post_norm"
    context: Context = "chained"
    head_scale: tuple[float, ...] = ()
    final_norm_gain: bool = True
    trunk: TrunkKind = "llama"


def at_key(path: Path, error: ValidationError, prefix: str = "") -> CheckpointError:
    """The first fault of a config, with its place."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return CheckpointError(f"{path}: {prefix}{key}: {first['msg']}.")


def special_tokens(
    bos: int | None, eos: int | tuple[int, ...] | list[int] | None, pad: int | None
) -> SpecialTokens:
    """Special tokens as a config names them: there may be several that end a text."""
    stops = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    return SpecialTokens(bos, stops, pad)


def stored_section(path: Path, found: dict[str, object]) -> HeadsShape:
    """The heads that our own section tells of; a horizon of 1 where there is none.

    Raises:
        CheckpointError: it is no such section.
    """
    section = found.get("mtp_config")
    if section is None:
        return HeadsShape(horizon=1)
    try:
        ours = MtpConfig.model_validate(section)
        return HeadsShape(ours.horizon, ours.hidden, ours.head_scale, ours.kind, ours.context)
    except ValidationError as error:
        raise at_key(path, error, "mtp_config.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: mtp_config: {error}.") from error


def read_json(directory: Path, path: Path) -> dict[str, object]:
    """A JSON object from a model directory.

    Raises:
        CheckpointError: the directory or the file is not there, or is no such thing.
    """
    if not directory.is_dir():
        raise CheckpointError(f"There is no model directory '{directory}'. Check the path.")
    try:
        found = read_any_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"'{directory}' has no {CONFIG_NAME}, so it is not a Hugging Face model directory."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(found).__name__}.")
    return found


def refuse_quantized(path: Path, quantization: object) -> None:
    """Refuse weights that cannot be trained.

    Raises:
        CheckpointError: there is a quantization.
    """
    if quantization is not None:
        raise CheckpointError(
            f"{path}: the weights are quantized (quantization_config), and training needs them "
            "as fp32, bf16 or fp16. Use the unquantized model."
        )


def mtp_section(heads: HeadsShape) -> dict[str, object]:
    """The keys of ``mtp_config``."""
    return {
        "kind": heads.kind,
        "horizon": heads.horizon,
        "hidden": heads.hidden,
        "context": heads.context,
        "head_scale": list(heads.head_scale),
    }


def special_tokens_json(tokens: SpecialTokens) -> dict[str, object]:
    """Name every special token, absent ones too: a missing key would mean the family's default."""
    eos = tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos) or None
    return {"bos_token_id": tokens.bos, "eos_token_id": eos, "pad_token_id": tokens.pad}
