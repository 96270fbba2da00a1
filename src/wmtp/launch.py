"""From checked settings to a running run: its ranks, its folder and lock, its checkpoint.

The first rank decides what is to be done and holds the run's lock; the others do as it says.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from wmtp.checkpoints.checkpoint import (
    list_checkpoints,
    newest_good,
    remove_leftovers,
    step_of,
    verify,
)
from wmtp.checkpoints.object_store import ObjectStore, bring_newest, complete_checkpoints
from wmtp.checkpoints.training_state import refuse_pickle
from wmtp.checkpoints.uploads import Uploads
from wmtp.config import Settings
from wmtp.config_check import changes_since
from wmtp.distributed.ranks import Ranks, joined_ranks, launched_ranks
from wmtp.dry_run import make_plan
from wmtp.errors import CheckpointError, ConfigError, DeviceError
from wmtp.job import assembled, open_device
from wmtp.opening.checks import check_start
from wmtp.runtime.console import Console
from wmtp.runtime.lock import hold_rank_lock, hold_run_lock, no_rank_left
from wmtp.runtime.metrics import read_metrics
from wmtp.runtime.run_folder import RunFolder, create_run_folder, open_run_folder
from wmtp.train import train

NEWEST = "newest"
"""``--resume`` without a checkpoint's name."""


def launch(settings: Settings, resume: str | None) -> int:
    """Train, as one process or as one of several.

    Args:
        settings: what was asked for; the same on every rank.
        resume: a checkpoint's folder, or ``NEWEST``; None starts a new run.

    Returns:
        Exit code of ``train``.

    Raises:
        WmtpError: as ``train``, or something that was asked for is refused.
        DeviceError: memory ran out, or another rank ended.
    """
    check_start(settings)  # before ranks meet, and before a run folder is made
    with ExitStack() as held:
        ranks = held.enter_context(joined(settings))
        console = held.enter_context(console_of(ranks))

        def begin() -> dict[str, Any]:
            return begin_run(settings, resume, held, console)

        begun = ranks.from_first(begin)
        folder = RunFolder(Path(begun["folder"]))
        if ranks.count > 1:
            held.enter_context(hold_rank_lock(folder.ranks_lock_file))
        checkpoint = None if begun["checkpoint"] is None else Path(begun["checkpoint"])
        console.line(f"run folder {folder.root}")
        with (
            assembled(settings, console.line, checkpoint, ranks=ranks) as job,
            uploads_of(settings, folder, ranks, console) as uploads,
        ):
            return train(job, folder, console, checkpoint, uploads)


@contextmanager
def joined(settings: Settings) -> Iterator[Ranks]:
    """Meet the other ranks, on the device that is this one's own.

    Raises:
        DeviceError: the device is not there, is not for several ranks, or they cannot be met.
        LostRankError: one of them ended.
    """
    device = open_device(settings)
    _, count, local = launched_ranks()
    if count > 1:
        device.join(local)
    with joined_ranks(device.process_group_backend) as ranks:
        try:
            yield ranks
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"memory ran out: {str(error).splitlines()[0]}") from error


def console_of(ranks: Ranks) -> Console:
    """The user's console on the first rank, one that nobody sees on the others."""
    if ranks.is_first:
        return Console()
    return Console(stream=open(os.devnull, "w", encoding="utf-8"))  # for the run


def begin_run(
    settings: Settings, resume: str | None, held: ExitStack, console: Console
) -> dict[str, str | None]:
    """Take the run's folder and lock, and find the checkpoint to go on from.

    Args:
        settings: what was asked for.
        resume: as in ``launch``.
        held: keeps the lock until the run ends.
        console: begins its log.

    Returns:
        ``folder`` and ``checkpoint``, which is None where there is none to load.

    Raises:
        CheckpointError: the checkpoint, or every one there is, cannot be used.
        ConfigError: the folder is another run's, or is in use, or the recipe has changed.
    """
    base_path = Path(settings.config.paths.checkpoints.base_path)
    name = settings.recipe.run.name
    store = find_store(settings, resume)
    kept_elsewhere = resume is not None and holds_checkpoints(store)
    if resume:
        folder = open_run_folder(base_path, name, kept_elsewhere=kept_elsewhere)
    else:
        folder = create_run_folder(base_path, name)
    held.enter_context(hold_run_lock(folder.lock_file, name))
    held.enter_context(no_rank_left(folder.ranks_lock_file, name))
    console.keep_log(folder.log_file)
    for place in folder.places:
        remove_leftovers(place)
    checkpoint = None
    if (
        resume == NEWEST
        and not kept_elsewhere
        and had_no_checkpoint_yet(folder, settings.config.paths.checkpoints.save_interval)
    ):
        if not folder.stage1.root.is_dir():  # else it goes on from that stage's checkpoints
            console.line("no checkpoint was made yet: the run begins anew")
    elif resume:
        checkpoint = find_checkpoint(resume, folder, store, console)
    if resume:
        for line in changes_since(folder.settings_file, settings):
            console.warning(line)
    return {
        "folder": str(folder.root),
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }


def had_no_checkpoint_yet(folder: RunFolder, save_interval: int) -> bool:
    """Whether a run ended before its first checkpoint, as far as it has logged.

    Beginning anew then loses no more than an interval, or two where the first save was made behind
    training. A run that came further had a checkpoint: where it is gone, that is for the user to
    know, and not to be passed over.
    """
    if list_checkpoints(folder.checkpoints) or folder.final.is_dir():
        return False
    if not folder.metrics_file.exists():
        return True
    last = max((row["step"] for row in read_metrics(folder.metrics_file)), default=0)
    return last <= 2 * save_interval


def store_of(settings: Settings) -> ObjectStore | None:
    """The run's place in the object store, if the config names one."""
    upload_to, name = settings.config.paths.checkpoints.upload_to, settings.recipe.run.name
    return None if upload_to is None else ObjectStore(f"{upload_to.rstrip('/')}/{name}")


def find_store(settings: Settings, resume: str | None) -> ObjectStore | None:
    """The run's place in the object store, which answers; a new run finds nothing in it.

    Raises:
        ConfigError: it cannot be reached, or holds a run of this name that is not resumed.
    """
    store = store_of(settings)
    if store is None:
        return None
    store.check()
    if not resume and holds_checkpoints(store):
        raise ConfigError(
            f"run '{settings.recipe.run.name}' already exists in {store.url}. "
            "Continue it with --resume, or choose another --run-name."
        )
    return store


def holds_checkpoints(store: ObjectStore | None) -> bool:
    """Whether a checkpoint in the store is complete."""
    return store is not None and bool(complete_checkpoints(store))


def uploads_of(
    settings: Settings, folder: RunFolder, ranks: Ranks, console: Console
) -> AbstractContextManager[Uploads | None]:
    """What copies the run to the object store, on the first rank."""
    store = store_of(settings)
    if store is None or not ranks.is_first:
        return nullcontext()
    return Uploads(store, folder, settings.config.paths.checkpoints.keep_last, console)


def find_checkpoint(
    resume: str, folder: RunFolder, store: ObjectStore | None, console: Console
) -> Path:
    """The checkpoint to go on from, verified.

    Raises:
        CheckpointError: it is damaged, or no checkpoint is good.
        ConfigError: it is not one of this run's.
    """
    if resume == NEWEST:
        path, refused = newest_here_or_brought(folder, store, console)
        for bad, reason in refused:
            console.warning(f"checkpoint {bad.name} {reason}: not used")
    else:
        path = Path(resume)
        refuse_pickle(path)
        if path.resolve().parent != folder.checkpoints.resolve():
            raise ConfigError(
                f"--resume {path}: not a checkpoint of this run, whose checkpoints are in "
                f"{folder.checkpoints}. To start a new run from it, set paths.models.base to it."
            )
        verify(path)
    if step_of(path) is None:
        raise ConfigError(f"--resume {path}: not a checkpoint folder named step-NNNNNNNN.")
    return path


def newest_here_or_brought(
    folder: RunFolder, store: ObjectStore | None, console: Console
) -> tuple[Path, list[tuple[Path, str]]]:
    """As ``newest_good``; where this machine has none, the store's newest is brought first.

    What is good is read once, however large it is. A newer one in the store is only told of.
    """
    try:
        here, refused = newest_good(folder.checkpoints)
    except CheckpointError:
        brought = None if store is None else bring_newest(store, folder, console.warning)
        if store is None or brought is None:
            raise
        console.line(f"{brought.name} was brought from {store.url}")
        return newest_good(folder.checkpoints)
    if store is not None:
        for there in complete_checkpoints(store)[-1:]:
            if (step_of(Path(there)) or 0) > (step_of(here) or 0):
                console.warning(
                    f"{store.url} has {there}, but {here.name} of this machine is resumed. To take "
                    f"that one instead, stop now and move {folder.checkpoints} away."
                )
    return here, refused


def plan(settings: Settings) -> None:
    """Check everything, do one micro-batch and tell what the run would be; keep nothing."""
    with (
        joined(settings) as ranks,
        console_of(ranks) as console,
        assembled(settings, console.line, ranks=ranks, keep_shards=False) as job,
    ):
        lines = make_plan(job).lines()
        if ranks.is_first:
            for line in lines:
                console.result(line)
