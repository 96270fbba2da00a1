"""What a run would be: everything checked, one micro-batch done, nothing kept."""

import math
import time
from dataclasses import dataclass
from datetime import timedelta

from wmtp.errors import DeviceError
from wmtp.job import Job
from wmtp.memory_plan import Prediction, predict
from wmtp.state import checkpoint_bytes, model_bytes
from wmtp.step import learn, set_in_motion, share_of, trained, update
from wmtp.train import is_due


@dataclass(frozen=True)
class Plan:
    """Figures of one measured micro-batch and what follows from them.

    Attributes:
        micro_batch_seconds: forward, loss and backward of one micro-batch, the second of two.
        update_seconds: clipping and the optimizer.
        peak_memory_bytes: measured, optimizer state included; what the process held before
            counts as well where there is no device but the CPU.
        predicted: what tensors hold at the peak, simulated; None where ranks share the run.
        disk_bytes: checkpoints that are kept at once, one more while it is written, final/ and
            average/.
        has_stage1: a value head is trained first, which is not tried here.
    """

    device: str
    parameters: int
    trained_parameters: int
    training_rows: int
    training_tokens: int
    steps: int
    epochs: float
    targets_per_row: float
    loss: float
    micro_batch_seconds: float
    update_seconds: float
    peak_memory_bytes: int
    predicted: Prediction | None
    disk_bytes: int
    evaluations: int
    reference: str
    micro_batches: int
    has_stage1: bool

    @property
    def step_seconds(self) -> float:
        """One optimizer step."""
        return self.micro_batch_seconds * self.micro_batches + self.update_seconds

    def lines(self) -> list[str]:
        """The plan for a person."""
        left = timedelta(seconds=math.ceil(self.steps * self.step_seconds))
        uncounted = "evaluation, saving and stage 1" if self.has_stage1 else "evaluation and saving"
        return [
            f"device           {self.device}",
            f"parameters       {self.parameters:,} ({self.trained_parameters:,} trained)",
            f"training data    {self.training_rows:,} rows, {self.training_tokens:,} tokens",
            f"valid targets    {self.targets_per_row:.1f} per row in the micro-batch tried",
            f"steps            {self.steps:,} ({self.epochs:.2f} epochs), "
            f"{self.evaluations} evaluations",
            f"reference        {self.reference}",
            f"first loss       {self.loss:.4f}",
            f"step time        {self.step_seconds:.2f} s "
            f"({self.micro_batches} x {self.micro_batch_seconds:.2f} + {self.update_seconds:.2f})",
            f"peak memory      {self.peak_memory_bytes / 2**20:,.0f} MiB measured",
            *([] if self.predicted is None else [f"                 {self.predicted.line()}"]),
            f"disk             {self.disk_bytes / 2**20:,.0f} MiB for checkpoints and results",
            f"time to finish   {left} without {uncounted}",
        ]

    def time_lines(self) -> list[str]:
        """The part about time."""
        names = ("steps ", "step time", "time to finish")
        return [line for line in self.lines() if line.startswith(names)]

    def refuse_longer_than(self, hours: float) -> None:
        """Refuse a run that does not end in time.

        Raises:
            DeviceError: says how many steps do.
        """
        steps = int(hours * 3600 / self.step_seconds)
        if steps < self.steps:
            raise DeviceError(
                f"the run would take {self.steps * self.step_seconds / 3600:.2f} hours, and there "
                f"are {hours:g}. Set train.max_steps: {steps}, or train a smaller model."
                if steps
                else f"a single step takes {self.step_seconds:.1f} s, longer than the {hours:g} "
                "hours there are. Train a smaller model."
            )


def make_plan(job: Job) -> Plan:
    """Do one micro-batch twice and one update, and tell what the whole run would take."""
    settings, recipe, device = job.settings, job.settings.recipe, job.device
    moving = set_in_motion(job)
    job.model.train()
    with job.training_batches(start_row=0) as batches:
        batch = next(batches)
    share = share_of(job, moving, [batch])
    here = batch.to(device.torch_device)
    output = learn(job, moving, here, share)  # the first one pays for buffers and warm caches
    started = time.perf_counter()
    learn(job, moving, here, share)
    device.synchronize()
    forward_backward = time.perf_counter() - started
    started = time.perf_counter()
    update(job, moving)
    device.synchronize()
    updating = time.perf_counter() - started

    saved = checkpoint_bytes(job.model, job.value_head, recipe.optim.name)
    checkpoints = settings.config.paths.checkpoints
    results = checkpoints.save_final + (recipe.train.average_last is not None)
    return Plan(
        device=device.name,
        parameters=job.model.num_parameters,
        trained_parameters=sum(p.numel() for p in trained(job.model)),
        training_rows=len(job.train_rows),
        training_tokens=job.train_rows.tokens,
        steps=job.max_steps,
        epochs=job.max_steps * job.rows_per_step / len(job.train_rows),
        targets_per_row=sum(batch.valid_counts_H) / len(batch.rows),
        loss=output.loss.item(),
        micro_batch_seconds=forward_backward,
        update_seconds=updating,
        peak_memory_bytes=device.peak_memory_bytes(),
        predicted=predict(
            settings,
            device.kind,
            scores_cached=job.reference is None,
            vocab_size=job.tokenizer.vocab_size,
        )
        if job.ranks.count == 1
        else None,
        disk_bytes=saved * (checkpoints.keep_last + 1) + results * model_bytes(job.model),
        evaluations=sum(
            is_due(step, recipe.train.eval_interval) for step in range(1, job.max_steps + 1)
        ),
        reference="computed at each step" if job.reference else "cached, or not needed",
        micro_batches=len(job.share.sizes),
        has_stage1=job.value_data is not None,
    )
