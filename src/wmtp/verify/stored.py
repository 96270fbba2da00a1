"""What an exported directory holds, tensor by tensor, against the model that it came from."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model, stored_form
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import StoredConfig
from wmtp.model.stored_tensors import check_names, open_tensors, tensor_files
from wmtp.verify.check import Check

_STORED_DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NOT_COMPUTED: Final = ("max_seq_length", "final_norm_gain", "dropout")
"""Parts of a shape that leave every logit as it is."""


Rename = Callable[[str], str]
"""From the name of a tensor in our own directories to its name in the export."""


def open_export(
    model_directory: Path, exported: Path, rename: Rename = str
) -> tuple[MultiTokenModel, StoredConfig]:
    """Load the model without those heads that the export leaves out.

    Returns:
        The model, float32 and in evaluation mode, and what the export's config says.

    Raises:
        CheckpointError: the export is damaged, or another model's: its config asks for another
            shape, or its files hold other tensors.
    """
    ours = read_config(model_directory)
    theirs = read_config(exported, ours.kind)
    _check_shapes(model_directory, ours.trunk, exported, theirs.trunk)
    trunk_only = theirs.heads.horizon == 1
    for key in ("horizon", "kind", "hidden", "context"):
        mine, found = vars(ours.heads)[key], vars(theirs.heads)[key]
        if found != mine and not trunk_only:
            raise _not_of(model_directory, exported, f"{key} of the heads", found, mine)
    files = tensor_files(exported)
    model = load_model(model_directory, trunk_only=trunk_only).eval()
    wanted = _stored_tensors(model, ours, theirs, rename)
    check_names(exported, wanted.keys(), files.keys())
    for name, tensor in wanted.items():
        with open_tensors(files[name]) as file:
            stored = file.get_slice(name)
            found_shape, dtype = list(stored.get_shape()), stored.get_dtype()
        if found_shape != list(tensor.shape):
            raise _not_of(model_directory, exported, name, found_shape, list(tensor.shape))
        if dtype not in _STORED_DTYPES:
            raise CheckpointError(
                f"{files[name]}: {name} is stored as {dtype}; what is verified is "
                f"{', '.join(_STORED_DTYPES)}."
            )
    return model, theirs


@torch.no_grad()
def compare_stored_numbers(
    model_directory: Path,
    exported: Path,
    model: MultiTokenModel,
    theirs: StoredConfig,
    rename: Rename = str,
) -> tuple[Check, torch.dtype]:
    """Hold every stored number against the model's, and round the model as the export is rounded.

    What an engine computes afterwards in float32 is comparable to the last digits, whatever the
    export is stored as.

    Args:
        model_directory: where the model is from.
        exported: checked with ``open_export``.
        model: what that returned; its parameters are rounded in place.
        theirs: what that returned.
        rename: what that was given.

    Returns:
        How many tensors differ, and the dtype of the export.

    Raises:
        CheckpointError: most differ: it is an export of another model.
    """
    files = tensor_files(exported)
    wanted = _stored_tensors(model, read_config(model_directory), theirs, rename)
    different, dtypes = [], set()
    for name, tensor in wanted.items():
        with open_tensors(files[name]) as file:
            stored = file.get_tensor(name)
        dtypes.add(stored.dtype)
        rounded = tensor.to(stored.dtype)
        if not torch.equal(stored, rounded):
            different.append(name)
        tensor.copy_(rounded)
    if 2 * len(different) > len(wanted):
        raise CheckpointError(
            f"'{exported}' is an export of another model: {len(different)} of its {len(wanted)} "
            f"tensors differ from those of '{model_directory}'."
        )
    names = dtype_names(dtypes)
    detail = f"of {len(wanted)} tensors, as {names}"
    if different:
        detail += f"; {', '.join(different[:3])}{' ...' if len(different) > 3 else ''}"
    smallest = min(dtypes, key=lambda dtype: dtype.itemsize)
    return Check("tensors that differ", len(different), 0, detail), smallest


def dtype_names(dtypes: set[torch.dtype]) -> str:
    """Dtypes as a user knows them."""
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _stored_tensors(
    model: MultiTokenModel, ours: StoredConfig, theirs: StoredConfig, rename: Rename
) -> dict[str, Tensor]:
    layout = "mtp_llama" if theirs.layout == "mtp_llama" else "hf"
    stored = stored_form(model, special_tokens=ours.special_tokens, layout=layout)  # type: ignore[arg-type]  # one of two words
    return {rename(name): tensor for name, tensor in stored.tensors.items()}


def _check_shapes(
    model_directory: Path, ours: LlamaShape, exported: Path, theirs: LlamaShape
) -> None:
    mine, found = asdict(ours), asdict(theirs)
    for key in mine:
        if mine[key] != found[key] and key not in _NOT_COMPUTED:
            raise _not_of(model_directory, exported, key, found[key], mine[key])


def _not_of(
    model_directory: Path, exported: Path, what: str, found: object, mine: object
) -> CheckpointError:
    return CheckpointError(
        f"'{exported}' is no export of '{model_directory}': {what} is {found} there, and {mine} "
        "in the model."
    )
