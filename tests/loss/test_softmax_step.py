"""The softmax step: two tokens by hand, 16-bit logits, and the kernel in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmtp.loss.softmax_step import NO_TARGET, softmax_minus_one_hot


def logits_and_targets(rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Some targets the likeliest token, one missing."""
    generator = torch.Generator().manual_seed(rows * vocabulary)
    logits_RV = torch.randn(rows, vocabulary, generator=generator) * 3
    targets_R = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets_R[::2] = logits_RV[::2].argmax(1)
    targets_R[1] = NO_TARGET
    return logits_RV, targets_R


def test_two_tokens_by_hand() -> None:
    """Odds of 3 to 1: softmax 0.75 and 0.25, cross-entropy ln 4 of the less likely one."""
    logits = torch.tensor([[0.0, 3.0], [3.0, 0.0]]).clamp(min=1).log()
    ce, correct = softmax_minus_one_hot(logits, torch.tensor([0, 0]))
    torch.testing.assert_close(ce, torch.tensor([4.0, 4 / 3]).log())
    assert correct.tolist() == [False, True]
    torch.testing.assert_close(logits, torch.tensor([[-0.75, 0.75], [-0.25, 0.25]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_logits_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    logits, targets = logits_and_targets(4, 1000)
    narrow = logits.to(dtype)
    wide = narrow.float()
    ce, correct = softmax_minus_one_hot(narrow, targets)
    wide_ce, wide_correct = softmax_minus_one_hot(wide, targets)
    assert torch.equal(ce, wide_ce)  # not through a rounded softmax
    assert torch.equal(correct, wide_correct)
    assert torch.equal(narrow, wide.to(dtype))


def test_kernel_equals_the_torch_operations_in_the_interpreter() -> None:
    """``kernel_cases.py`` in a process of its own: Triton asks the variable when it is imported."""
    pytest.importorskip("triton", reason="Triton cannot be installed on this system")
    cases = Path(__file__).with_name("kernel_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32"])
def test_kernel_compiles_for_a_gpu_that_is_not_here(
    element: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but running it: Triton brings its compiler for NVIDIA's chips along."""
    pytest.importorskip("triton", reason="Triton cannot be installed on this system")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from wmtp.loss import softmax_kernel

    types = {"logits": f"*{element}", "targets": "*i64", "ce": "*fp32", "correct": "*i8"}
    sizes = {"row_stride": "i32", "vocabulary": "i32", "BLOCK": "constexpr"}
    source = ASTSource(
        softmax_kernel._softmax_minus_one_hot,
        signature=types | sizes,
        constexprs={"BLOCK": softmax_kernel.LARGEST_BLOCK},
        # rows that begin at multiples of 16 numbers
        attrs={(place,): [["tt.divisibility", 16]] for place in (0, 4, 5)},
    )
    done = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16})
    assert "ld.global.v4.b32" in done.asm["ptx"]  # 16 bytes at a time
    assert "st.global.v4.b32" in done.asm["ptx"]
