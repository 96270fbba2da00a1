"""Checks and times that need a GPU: is the loss right, does a step ever wait, how fast is it.

    python benchmarks/gpu.py            on a machine with an NVIDIA GPU; about ten minutes
    python benchmarks/gpu.py --smoke    the same code at toy sizes on a CPU; its times mean nothing

Prints one report in Markdown and writes it to ``benchmarks/results/gpu_<chip>.md``. Exit codes:
0 all checks hold, 1 one does not, 2 there is no GPU.
"""

import argparse
import datetime
import functools
import gc
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.evaluation.window import Window
from wmtp.loss import Scope, Workspace, fused_mtp_loss
from wmtp.loss.pieces import MEBIBYTE
from wmtp.loss.softmax_step import softmax_minus_one_hot
from wmtp.model.generate import Figures, generate_many
from wmtp.model.heads import HeadsShape
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, build_model
from wmtp.optim import build_optimizers, clip_gradients, step_optimizers
from wmtp.runtime.device import Device, available_kinds, choose_device
from wmtp.step import gradient_of
from wmtp.weighting import Rho1, Signals, Weighting, weigh_chunk

RESULTS = Path(__file__).parent / "results"
HORIZON = 4
HEAD_SCALE = (1.0, 0.3, 0.3, 0.3)
SKIPPED = 0.3


@dataclass(frozen=True)
class Shape:
    """A Llama and the micro-batch it is trained on."""

    name: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    batch_rows: int
    length: int

    def model(self, horizon: int) -> MultiTokenModel:
        """A new model, on the CPU."""
        heads = self.hidden_size // 64
        shape = LlamaShape(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=-(-self.hidden_size * 8 // 3 // 128) * 128,
            num_layers=self.num_layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=64,
            max_seq_length=self.length,
            rope_theta=10000.0,
            norm_eps=1e-5,
            tie_embeddings=True,
        )
        return build_model(shape, HeadsShape(horizon), seed=0)


@dataclass(frozen=True)
class Plan:
    """How large everything is."""

    check_rows: int
    check_dim: int
    check_vocab: int
    loss_tokens: int
    loss_dims: tuple[int, ...]
    loss_vocabs: tuple[int, ...]
    models: tuple[Shape, ...]
    repeats: int
    decoded_tokens: int


FULL = Plan(
    check_rows=2048,
    check_dim=512,
    check_vocab=32000,
    loss_tokens=8192,
    loss_dims=(2048, 4096),
    loss_vocabs=(32000, 128256),
    models=(
        Shape("350M", 1024, 24, 32000, 16, 2048),
        Shape("1B", 2048, 20, 32000, 8, 2048),
    ),
    repeats=10,
    decoded_tokens=128,
)
SMOKE = Plan(
    check_rows=256,
    check_dim=128,
    check_vocab=2000,
    loss_tokens=64,
    loss_dims=(32,),
    loss_vocabs=(500,),
    models=(Shape("toy", 64, 2, 300, 2, 32),),
    repeats=1,
    decoded_tokens=24,
)


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        found: what was measured, in words.
        holds: whether it does; None where it cannot be asked on this machine.
    """

    name: str
    found: str
    holds: bool | None


@dataclass
class Problem:
    """Hidden states, one matrix or one per head, targets, and a reference's cross-entropy."""

    hidden_HBSD: list[Tensor]
    matrices: list[Tensor]
    targets_BSH: Tensor
    valid_BSH: Tensor
    reference_BSH: Tensor


def make_problem(
    device: Device, tokens: int, dim: int, vocab: int, *, own: bool, dtype: torch.dtype
) -> Problem:
    """Four rows of tokens, an eighth of the targets not valid."""
    generator = torch.Generator().manual_seed(0)
    here = device.torch_device
    shape = (4, tokens // 4, HORIZON)
    hidden = torch.randn(HORIZON, *shape[:2], dim, generator=generator).to(here, dtype)
    matrices = [
        (torch.randn(vocab, dim, generator=generator) * 2 / dim**0.5).to(here)
        for _ in range(HORIZON if own else 1)
    ]
    return Problem(
        [x.clone().requires_grad_() for x in hidden],
        matrices,
        torch.randint(0, vocab, shape, generator=generator).to(here),
        (torch.rand(shape, generator=generator) > 1 / 8).to(here),
        (torch.rand(shape, generator=generator) * 12).to(here),
    )


def workspace_for(device: Device, product_dtype: torch.dtype | None, limit_bytes: int) -> Workspace:
    return Workspace(
        limit_bytes,
        device.loss_chunk_rows,
        exact_counts=False,  # as on a GPU, in the smoke test too
        product_dtype=product_dtype,
        kernel=device.loss_kernel,
    )


def learn(
    problem: Problem,
    weighting: Weighting | None,
    workspace: Workspace,
    gradients: list[Tensor],
    valid_count: float,
    valid_targets: int | None = None,
    distill: float = 0.0,
) -> Tensor:
    """One call and its backward; returns the weights. No weighting means all ones, known."""
    signals = Signals(problem.valid_BSH, reference_ce=problem.reference_BSH)

    def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
        if weighting is None:
            return problem.valid_BSH.float()
        return weigh_chunk(weighting, signals, ce, part)

    scope: Scope = "known" if weighting is None else weighting.scope
    output = fused_mtp_loss(
        problem.hidden_HBSD,
        problem.matrices,
        problem.targets_BSH,
        problem.valid_BSH,
        weigh,
        scope,
        valid_count=valid_count,
        head_scale=HEAD_SCALE,
        unembedding_gradients=gradients,
        workspace=workspace,
        kept_fraction=1.0 if weighting is None else weighting.kept_fraction,
        valid_targets=valid_targets,
        distill=distill,
    )
    output.loss.backward()
    return output.weights_BSH


# checks ---------------------------------------------------------------------------------------

WEIGHTINGS: dict[str, Weighting | None] = {
    "known": None,
    "token": Rho1(compete="heads", center="none"),
    "sequence": Rho1(),
    "token_skip": Rho1(mode="token_skip", skip_fraction=SKIPPED),
}


def gradient_checks(device: Device, plan: Plan) -> Iterator[Check]:
    """Every schedule against plain float64 autograd with the same weights."""
    for own, bits, (name, weighting), fits, distill in itertools.product(
        (False, True), (32, 16), WEIGHTINGS.items(), (True, False), (0.0, 0.5)
    ):
        if not fits and (weighting is None or weighting.scope != "sequence"):
            continue
        dtype = torch.float32 if bits == 32 else torch.bfloat16
        problem = make_problem(
            device,
            plan.check_rows // HORIZON,
            plan.check_dim,
            plan.check_vocab,
            own=own,
            dtype=dtype,
        )
        bytes_of_all = plan.check_rows * (plan.check_vocab + 64) * bits // 8
        workspace = workspace_for(device, dtype, bytes_of_all if fits else bytes_of_all // 10)
        gradients = [torch.zeros_like(matrix) for matrix in problem.matrices]
        weights_BSH = learn(
            problem, weighting, workspace, gradients, plan.check_rows, distill=distill
        )
        error = relative_error(problem, weights_BSH, gradients, plan.check_rows, distill)
        limit = 1e-6 if bits == 32 else 3e-3
        fitting, taught = "" if fits else ", not fitting", ", taught" if distill else ""
        label = f"gradients, {name}{fitting}{taught}, " + (
            f"{'a matrix per head' if own else 'shared matrix'}, {'fp32' if bits == 32 else 'bf16'}"
        )
        yield Check(label, f"{error:.1e} of {limit:.0e}", error <= limit)


def relative_error(
    problem: Problem,
    weights_BSH: Tensor,
    gradients: list[Tensor],
    valid_count: float,
    distill: float,
) -> float:
    """Norm of the difference over the norm, all gradients together."""
    S = problem.targets_BSH.shape[1]
    hidden = [x.detach().double().requires_grad_() for x in problem.hidden_HBSD]
    matrices = [matrix.double().requires_grad_() for matrix in problem.matrices]
    for h, x in enumerate(hidden):
        logits_BSV = x @ matrices[h % len(matrices)].t()
        ce_BS = F.cross_entropy(
            logits_BSV.flatten(0, 1), problem.targets_BSH[:, :, h].flatten(), reduction="none"
        ).view_as(problem.targets_BSH[:, :, h])
        if h == 0:
            trunk_BSV = logits_BSV.detach().softmax(-1)
        else:
            log_q_BTV = logits_BSV[:, : S - h].log_softmax(-1)
            of_trunk_BT = -(trunk_BSV[:, h:] * log_q_BTV).sum(-1)
            shared_BT = (1 - distill) * ce_BS[:, : S - h] + distill * of_trunk_BT
            ce_BS = torch.cat((shared_BT, ce_BS[:, S - h :]), dim=1)
        factor_BS = HEAD_SCALE[h] * weights_BSH[:, :, h].double() / valid_count
        (factor_BS * ce_BS).sum().backward()
    wanted = torch.cat([leaf.grad.flatten() for leaf in [*hidden, *matrices]])
    found = torch.cat(
        [g.double().flatten() for g in [*(x.grad for x in problem.hidden_HBSD), *gradients]]
    )
    return float((found - wanted).norm() / wanted.norm())


def kernel_checks(device: Device, plan: Plan) -> Iterator[Check]:
    """The Triton kernel against the torch operations, on sizes that divide and that do not."""
    for vocab, dtype in itertools.product(
        (plan.check_vocab, plan.check_vocab + 17), (torch.float32, torch.bfloat16)
    ):
        name = f"Triton kernel, {vocab} tokens, {str(dtype).removeprefix('torch.')}"
        if not device.loss_kernel:
            yield Check(name, "not for this device", None)
            continue
        from wmtp.loss.softmax_kernel import softmax_minus_one_hot as kernel

        logits = (torch.randn(256, vocab, device=device.torch_device) * 3).to(dtype)
        targets = torch.randint(-1, vocab, (256,), device=device.torch_device)
        theirs = logits.clone()
        ce, correct = kernel(logits, targets)
        wanted, hits = softmax_minus_one_hot(theirs, targets)
        off = float((ce - wanted).abs().max())
        rest = float((logits.float() - theirs.float()).abs().max())
        holds = off < 1e-4 and rest < (1e-5 if dtype == torch.float32 else 2**-8)
        yield Check(name, f"{off:.1e} nats, {rest:.1e}", holds and torch.equal(correct, hits))


def waiting_checks(device: Device, plan: Plan) -> Iterator[Check]:
    """A training step in which the host may not wait for the device, once everything is warm."""
    for name, weighting in WEIGHTINGS.items():
        step = make_step(device, plan.models[0], HORIZON, weighting)
        step()
        label = f"a step never waits, {name}"
        if device.kind != "cuda":
            step()
            yield Check(label, "cannot be asked here", None)
            continue
        try:
            with waiting_refused():
                step()
        except RuntimeError as error:  # torch names the operation
            yield Check(label, str(error).splitlines()[0], False)
        else:
            yield Check(label, "it did not", True)


def decoding_checks(device: Device, plan: Plan) -> Iterator[Check]:
    """Steps that are compiled, and on CUDA recorded, give the text of steps as they are written."""
    model = decoding_model(device, plan.models[0])
    for speculative in (0, HORIZON - 1):
        written, _ = decoded(model, plan, speculative, compiled=False)
        replayed, _ = decoded(model, plan, speculative, compiled=True)
        same = next((i for i, (a, b) in enumerate(zip(written, replayed, strict=True)) if a != b),
                    len(written))  # fmt: skip
        name = f"compiled decoding, {speculative} drafts, float32"
        yield Check(name, f"{same} of {len(written)} tokens the same", same == len(written))


@contextmanager
def waiting_refused() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# times ----------------------------------------------------------------------------------------


def seconds_of(device: Device, run: Callable[[], object], repeats: int) -> float:
    """Median, after a run that pays for buffers and compilation."""
    run()
    taken = []
    for _ in range(repeats):
        device.synchronize()
        started = time.perf_counter()
        run()
        device.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def bare_products(device: Device, problem: Problem, dtype: torch.dtype) -> Callable[[], None]:
    """The three products that no scheme can do without, in 16 bits throughout."""
    W_VD = problem.matrices[0].to(dtype)
    x_RD = torch.stack([x.detach() for x in problem.hidden_HBSD], 2).flatten(0, 2).to(dtype)
    rows = min(device.loss_chunk_rows, len(x_RD), device.loss_workspace_bytes // (2 * len(W_VD)))
    z_RV = torch.empty(rows, len(W_VD), dtype=dtype, device=device.torch_device)
    gradient_RD, gradient_VD = torch.empty_like(x_RD), torch.zeros_like(W_VD)

    def run() -> None:
        for x, dx in zip(x_RD.split(rows), gradient_RD.split(rows), strict=True):
            z = z_RV[: len(x)]
            torch.mm(x, W_VD.t(), out=z)
            torch.mm(z, W_VD, out=dx)
            gradient_VD.addmm_(z.t(), x)

    return run


def loss_times(device: Device, plan: Plan) -> Iterator[str]:
    """Rows of a table: what the loss takes over its three products.

    The extra memory has the gradients of the hidden states in it, not that of the unembedding.
    """
    names = " | ".join(f"{name} / products" for name in WEIGHTINGS)
    yield f"| width | vocabulary | three products, ms | {names} | extra MiB |"
    yield "|---" * (4 + len(WEIGHTINGS)) + "|"
    for dim, vocab in itertools.product(plan.loss_dims, plan.loss_vocabs):
        yield loss_row(device, plan, dim, vocab)


def loss_row(device: Device, plan: Plan, dim: int, vocab: int) -> str:
    dtype = device.compute_dtype
    problem = make_problem(device, plan.loss_tokens, dim, vocab, own=False, dtype=dtype)
    least = seconds_of(device, bare_products(device, problem, dtype), plan.repeats)
    gradients = [torch.zeros_like(problem.matrices[0])]
    workspace = workspace_for(device, dtype, device.loss_workspace_bytes)
    count = int(problem.valid_BSH.sum())
    device.reset_peak_memory()
    before = device.peak_memory_bytes()
    over = []
    for weighting in WEIGHTINGS.values():
        run = functools.partial(learn, problem, weighting, workspace, gradients, count, count)
        over.append(f"{seconds_of(device, run, plan.repeats) / least:.2f}")
    extra = (device.peak_memory_bytes() - before) / MEBIBYTE
    return f"| {dim} | {vocab} | {least * 1e3:.2f} | {' | '.join(over)} | {extra:,.0f} |"


def make_step(
    device: Device, shape: Shape, horizon: int, weighting: Weighting | None, *, again: bool = False
) -> Callable[[], None]:
    """A whole training step as ``train.py`` takes it, on one micro-batch of random tokens.

    ``again`` recomputes each block in the backward pass instead of keeping its insides.
    """
    model = shape.model(horizon).to(device.torch_device)
    model.set_gradient_checkpointing(again)
    optimizers = build_optimizers(
        model.named_parameters(),
        name="adamw",
        lr=1e-4,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.0,
        fused=device.fused_adamw,
    )
    parameters = list(model.parameters())
    window = Window(horizon, device)
    workspace = workspace_for(device, device.compute_dtype, device.loss_workspace_bytes)
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch_rows, shape.length + horizon)
    stream = torch.randint(0, shape.vocab_size, size, generator=generator).to(device.torch_device)
    tokens_BS = stream[:, : shape.length]
    targets_BSH = torch.stack([stream[:, h + 1 : h + 1 + shape.length] for h in range(horizon)], 2)
    valid_BSH = torch.ones_like(targets_BSH, dtype=torch.bool)
    signals = Signals(valid_BSH, reference_ce=torch.zeros(valid_BSH.shape).to(stream.device))
    ones_BSH = valid_BSH.float()
    targets = valid_BSH.numel()

    def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
        return ones_BSH if weighting is None else weigh_chunk(weighting, signals, ce, part)

    def step() -> None:
        with device.autocast():
            hidden = model(tokens_BS, targets_BSH)
        output = fused_mtp_loss(
            hidden,
            model.unembeddings,
            targets_BSH,
            valid_BSH,
            weigh,
            "known" if weighting is None else weighting.scope,
            valid_count=sum(HEAD_SCALE[:horizon]) * targets / horizon,
            head_scale=HEAD_SCALE[:horizon],
            unembedding_gradients=[gradient_of(matrix) for matrix in model.unembeddings],
            workspace=workspace,
            kept_fraction=1.0 if weighting is None else weighting.kept_fraction,
            valid_targets=targets,
        )
        output.loss.backward()
        window.add(output, valid_BSH)
        norm = clip_gradients(parameters, 1.0)
        step_optimizers(optimizers, ~norm.isfinite())
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        window.end_step(norm, tokens_BS.numel())

    return step


def step_times(device: Device, plan: Plan) -> Iterator[str]:
    """Rows of a table: whole steps."""
    yield "| model | H | recomputed | tokens/s | MFU | peak GiB |"
    yield "|---|---|---|---|---|---|"
    peak_flops = device.peak_flops()
    for shape, horizon, again in itertools.product(plan.models, (1, HORIZON), (False, True)):
        label = f"| {shape.name} | {horizon} | {'yes' if again else 'no'} |"
        device.reset_peak_memory()
        step: Callable[[], None] | None = None
        try:
            step = make_step(device, shape, horizon, None, again=again)
            seconds = seconds_of(device, step, plan.repeats)
        except torch.OutOfMemoryError:
            yield f"{label} out of memory | | |"
            continue
        finally:
            step = None  # the next model is built before the name is taken again
            gc.collect()
        tokens_per_second = shape.batch_rows * shape.length / seconds
        with torch.device("meta"):
            flops = shape.model(horizon).training_flops_per_token(shape.length)
        used = "" if peak_flops is None else f"{tokens_per_second * flops / peak_flops:.1%}"
        peak = device.peak_memory_bytes() / 1024 / MEBIBYTE
        yield f"{label} {tokens_per_second:,.0f} | {used} | {peak:.1f} |"


def decoding_model(device: Device, shape: Shape) -> MultiTokenModel:
    """A model with random numbers, whose last maps are not zero, so that its text has a choice."""
    model = shape.model(HORIZON)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=draws)
    return model.to(device.torch_device).eval()


def decoded(
    model: MultiTokenModel, plan: Plan, speculative: int, *, compiled: bool
) -> tuple[list[int], Figures]:
    """A greedy text after eight tokens, and what it took."""
    (text,), (figures,) = generate_many(
        model,
        [range(8)],
        max_new_tokens=plan.decoded_tokens,
        speculative=speculative,
        compiled=compiled,
    )
    return text.ids[text.prompt :], figures


def decoding_times(device: Device, plan: Plan) -> Iterator[str]:
    """Rows of a table: one text, as written and compiled; drafts of random heads are rejected."""
    yield "| model | steps | drafts | milliseconds a round |"
    yield "|---|---|---|---|"
    for shape in plan.models:
        model = decoding_model(device, shape)
        for speculative, compiled in itertools.product((0, HORIZON - 1), (False, True)):
            decoded(model, plan, speculative, compiled=compiled)
            _, figures = decoded(model, plan, speculative, compiled=compiled)
            a_round = 1e3 * figures.decoding_seconds / max(1, figures.text_passes)
            how = "compiled" if compiled else "as written"
            yield f"| {shape.name} | {how} | {speculative} | {a_round:.2f} |"


# the report -----------------------------------------------------------------------------------


def report(device: Device, plan: Plan) -> tuple[list[str], bool]:
    """The report's lines, and whether all checks hold."""
    checks = []
    for kind in (gradient_checks, kernel_checks, waiting_checks, decoding_checks):
        for check in kind(device, plan):
            say(f"{check.name}: {check.found}")
            checks.append(check)
    words = {True: "holds", False: "FAILS", None: "not asked"}
    lines = [
        f"{datetime.date.today()}, {device.name}, torch {torch.__version__.split('+')[0]}, "
        f"{device.precision}: loss over {plan.loss_tokens} tokens and {HORIZON} heads.",
        "",
        "| check | found | |",
        "|---|---|---|",
        *(f"| {check.name} | {check.found} | {words[check.holds]} |" for check in checks),
        "",
    ]
    for table in (loss_times, step_times, decoding_times):
        for line in table(device, plan):
            say(line)
            lines.append(line)
        lines.append("")
    return lines[:-1], all(check.holds is not False for check in checks)


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--markdown", type=Path, help="write the report here")
    arguments = parser.parse_args()
    if not arguments.smoke and "cuda" not in available_kinds():
        print("This machine has no NVIDIA GPU that torch can use; try --smoke.", file=sys.stderr)
        sys.exit(2)
    device = choose_device("cpu" if arguments.smoke else "cuda", "bf16")
    lines, holds = report(device, SMOKE if arguments.smoke else FULL)
    print("\n".join(lines))
    chip = re.sub(r"[^a-z0-9]+", "_", device.name.lower()).strip("_")
    path = arguments.markdown or (None if arguments.smoke else RESULTS / f"gpu_{chip}.md")
    if path is not None:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
