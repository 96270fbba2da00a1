"""A training step asks the device for nothing back, whatever the weighting."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.loss.test_work_and_memory import WaitDetector
from wmtp.config_check import load_settings
from wmtp.job import assembled
from wmtp.loss import Workspace
from wmtp.step import learn, set_in_motion, share_of, update

from .conftest import World
from .test_every_combination import TRUNKS, WEIGHTINGS, labelled_rows


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_step_reads_nothing_back(
    world: World, small_reference: Path, trunk: str, weighting: str
) -> None:
    """As on a device where counting waits: shapes are fixed, and no number comes to the host."""
    rows = world.folder / "rows.jsonl"
    labelled_rows(rows)
    world.config["paths"] |= {"models": {"ref": str(small_reference)}}
    world.recipe["model"] |= TRUNKS[trunk]
    world.recipe["data"]["train"]["sources"] = [str(rows)]
    world.recipe["weighting"] = WEIGHTINGS[weighting]
    settings = load_settings(*world.write_files())
    with assembled(settings, lambda _: None) as opened:
        job = replace(opened, workspace=Workspace(exact_counts=False))
        if job.reference is not None:
            job.reference.workspace = job.workspace
        moving = set_in_motion(job)
        with job.training_batches(start_row=0) as batches:
            first, second = next(batches), next(batches)
        for batch in (first, second):  # in the first one the optimizer makes its state
            share = share_of(job, moving, [batch])  # counted before the batch goes to the device
            with WaitDetector() if batch is second else nullcontext():
                learn(job, moving, batch, share)
                update(job, moving)
