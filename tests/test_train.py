from pathlib import Path

import pytest
import torch

from tests.model.toys import shape
from wmtp.errors import DivergedError
from wmtp.evaluation.window import Window
from wmtp.model.heads import HeadsShape
from wmtp.model.multi_token import build_model
from wmtp.runtime.device import choose_device
from wmtp.runtime.run_folder import RunFolder
from wmtp.state import Moving, Progress
from wmtp.train import SMALLEST_LOSS_SCALE, gradient_of, is_due, raise_if_diverged


def moving_with(scale: float) -> Moving:
    model = build_model(shape(), HeadsShape(1), seed=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))
    device = choose_device("cpu", "fp32")
    optimizers = (torch.optim.AdamW(model.parameters()),)
    never = torch.full((), torch.inf)
    window, progress = Window(1, device), Progress(step=40)
    return Moving(model, None, optimizers, scaler, window, progress, {}, never)


def test_an_fp16_run_whose_every_gradient_overflows_ends() -> None:
    raise_if_diverged(moving_with(SMALLEST_LOSS_SCALE), RunFolder(Path("run")))
    with pytest.raises(DivergedError, match="up to step 40"):
        raise_if_diverged(moving_with(SMALLEST_LOSS_SCALE / 2), RunFolder(Path("run")))


def test_a_frozen_parameter_has_no_gradient_to_add_to() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    made = gradient_of(parameter)
    assert made is parameter.grad
    assert made is gradient_of(parameter)
    assert gradient_of(parameter.requires_grad_(False)) is None  # type: ignore[arg-type]


def test_an_interval_is_due_at_its_multiples_and_never_without_one() -> None:
    assert [step for step in range(1, 10) if is_due(step, 4)] == [4, 8]
    assert not any(is_due(step, None) for step in range(10))
