"""The mean of the last models of a run.

While the learning rate is high the weights wander around a better place than any they are at;
their mean is nearer to it, at no cost in training.

Source:
    Izmailov et al. 2018 (arXiv:1803.05407); the last checkpoints of one run: Kaddour 2022
    (arXiv:2209.14981).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from wmtp.checkpoints.checkpoint import find_damage, list_checkpoints, step_of, write_folder
from wmtp.errors import CheckpointError, ConfigError
from wmtp.model.hf_layout import GENERATION_NAME, tokenizer_files
from wmtp.model.stored_tensors import CONFIG_NAME, INDEX_NAME, open_tensors, tensor_files
from wmtp.safetensors_writer import write_one_by_one

AVERAGE_NAME: Final = "average"
FACTS_NAME: Final = "average.json"


def newest_good_checkpoints(
    checkpoints: Path, count: int
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Find the newest ``count`` checkpoints that are complete.

    Returns:
        The checkpoints, oldest first, and each one that was passed over with the reason.

    Raises:
        CheckpointError: there are fewer; says how many, and how to have more.
    """
    good: list[Path] = []
    refused: list[tuple[Path, str]] = []
    for checkpoint in reversed(list_checkpoints(checkpoints)):
        if len(good) == count:
            break
        reason = find_damage(checkpoint)
        if reason is None:
            good.append(checkpoint)
        else:
            refused.append((checkpoint, reason))
    if len(good) < count:
        passed_over = "".join(f"; {path.name} {reason}" for path, reason in refused)
        raise CheckpointError(
            f"the last {count} checkpoints were asked for, but {checkpoints} has only {len(good)} "
            f"to use{passed_over}. Ask for fewer, or train with a larger "
            "paths.checkpoints.keep_last."
        )
    return good[::-1], refused


def average_checkpoints(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of several models of one shape as a model directory.

    Each number is summed in float64 in the order of ``folders`` and rounded once to float32. One
    tensor at a time is in memory. Config and tokenizer are those of the last folder, whose files
    of weights set how the mean is cut into files.

    Args:
        folders: verified checkpoints, oldest first, at least one.
        out: a folder that becomes complete or stays as it is; an earlier mean in it is replaced.

    Raises:
        CheckpointError: the models do not have the same tensors, or not in float32.
        ConfigError: ``out`` holds something else, or has the name of a checkpoint.
        StorageError: the disk refused.
    """
    _refuse_foreign(out)
    files = [tensor_files(folder) for folder in folders]
    newest = folders[-1]
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(open_tensors(path))
            for path in sorted({path for of_one in files for path in of_one.values()})
        }
        stored = [{name: opened[path] for name, path in of_one.items()} for of_one in files]
        shapes = _common_shapes(folders, stored)

        def fill(folder: Path) -> None:
            for path in sorted(set(files[-1].values())):
                inside = {name: shapes[name] for name in shapes if files[-1][name] == path}
                means = (_mean(name, shapes[name], stored) for name in inside)
                write_one_by_one(folder / path.name, inside, means, torch.float32)
            _copy_what_is_no_weight(newest, folder)
            facts = {"mean_of": [path.name for path in folders]}
            (folder / FACTS_NAME).write_text(json.dumps(facts, indent=1) + "\n")

        write_folder(out, step_of(newest) or 0, fill)


def _refuse_foreign(out: Path) -> None:
    if step_of(out) is not None:
        raise ConfigError(f"a mean cannot be written to {out}: it would pass for a checkpoint.")
    if out.exists() and not (out / FACTS_NAME).is_file() and not _is_empty_folder(out):
        raise ConfigError(
            f"{out} holds something that is not a mean of checkpoints (it has no {FACTS_NAME}), "
            "and is not replaced. Name a new folder with --out."
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _common_shapes(
    folders: Sequence[Path], stored: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, which is the same in every folder."""
    found = [_shapes(folder, of_one) for folder, of_one in zip(folders, stored, strict=True)]
    for folder, shapes in zip(folders, found, strict=True):
        for name in sorted(shapes.keys() | found[-1].keys()):
            here, there = shapes.get(name), found[-1].get(name)
            if here != there:
                raise CheckpointError(
                    f"{folder.name} and {folders[-1].name} hold different models, which have no "
                    f"mean: {name} is {_shown(here)} in the one and {_shown(there)} in the other."
                )
    return found[-1]


def _shapes(folder: Path, stored: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, file in stored.items():
        tensor = file.get_slice(name)
        if tensor.get_dtype() != "F32":
            raise CheckpointError(
                f"{folder}: {name} is stored as {tensor.get_dtype()}; a mean is taken of F32 only."
            )
        shapes[name] = tuple(tensor.get_shape())
    return shapes


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _mean(name: str, shape: tuple[int, ...], stored: Sequence[Mapping[str, Any]]) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64)
    for file_of in stored:
        total += file_of[name].get_tensor(name)
    return (total / len(stored)).float()


def _copy_what_is_no_weight(model: Path, folder: Path) -> None:
    names = (model / name for name in (CONFIG_NAME, GENERATION_NAME, INDEX_NAME))
    for path in (*filter(Path.is_file, names), *tokenizer_files(model)):
        shutil.copyfile(path, folder / path.name)
