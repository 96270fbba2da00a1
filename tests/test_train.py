import torch

from wmtp.step import gradient_of
from wmtp.train import is_due


def test_a_frozen_parameter_has_no_gradient_to_add_to() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    made = gradient_of(parameter)
    assert made is parameter.grad
    assert made is gradient_of(parameter)
    assert gradient_of(parameter.requires_grad_(False)) is None  # type: ignore[arg-type]


def test_an_interval_is_due_at_its_multiples_and_never_without_one() -> None:
    assert [step for step in range(1, 10) if is_due(step, 4)] == [4, 8]
    assert not any(is_due(step, None) for step in range(10))
