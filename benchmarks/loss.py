"""Time, memory and exactness of the weighted multi-token loss, beside other ways to compute it.

    python benchmarks/loss.py                          the sizes that the goals are written for
    python benchmarks/loss.py --rows 512 --vocab 8000  a quick look
    python benchmarks/loss.py --rounds 7 --markdown benchmarks/results/loss_cpu.md

Every scheme gets the same hidden states, targets and weights and must deliver the gradients of
the hidden states and of the unembedding. Times are CPU time in one process, the least of several
rounds, the schemes taking turns within a round, over the time of the three matrix products alone.
Memory is the growth of resident memory while a scheme runs once in a forked child (Linux only).
Gradient errors are measured against float64 on a smaller problem.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.bench.loss_problem import (
    CHUNK_ROWS,
    SKIPPED,
    WORKSPACE_BYTES,
    Problem,
    bare_products,
    forget_gradients,
    learn,
    learn_weighted,
    make_problem,
    workspace_of,
)
from wmtp.loss import measure_ce
from wmtp.loss.pieces import MEBIBYTE
from wmtp.weighting import Rho1, Signals, Weighting


def with_zeros(problem: Problem) -> Tensor:
    """Weights of mean 1 of which a share is 0."""
    weights = torch.full_like(problem.weights_BSH, 1 / (1 - SKIPPED)).view(-1)
    order = torch.randperm(problem.rows, generator=torch.Generator().manual_seed(1))
    weights[order[: int(SKIPPED * problem.rows)]] = 0
    return weights.view_as(problem.weights_BSH)


# other ways -----------------------------------------------------------------------------------


def stacked_logits(problem: Problem) -> None:
    """``[B, S, H, V]`` and one call of cross_entropy: what most code does."""
    logits_BSHV = torch.stack(
        [F.linear(x, problem.matrix(h)) for h, x in enumerate(problem.hidden_HBSD)], 2
    )
    ce_R = F.cross_entropy(
        logits_BSHV.flatten(0, 2), problem.targets_BSH.view(-1), reduction="none"
    )
    ((ce_R * problem.weights_BSH.view(-1)).sum() / problem.rows).backward()


def head_by_head(problem: Problem) -> None:
    """Forward and backward of one head at a time (Gloeckle et al. 2024)."""
    for h, x_BSD in enumerate(problem.hidden_HBSD):
        logits_NV = F.linear(x_BSD, problem.matrix(h)).flatten(0, 1)
        targets_N = problem.targets_BSH[:, :, h].flatten()
        ce_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
        ((ce_N * problem.weights_BSH[:, :, h].flatten()).sum() / problem.rows).backward()


def backward_in_chunks(problem: Problem) -> None:
    """Forward and backward of one chunk at a time through autograd (torchtitan's scheme)."""
    x_RD = torch.stack(problem.hidden_HBSD, 2).view(problem.rows, -1)
    gradients = []
    for rows in torch.arange(problem.rows).split(CHUNK_ROWS):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        x = x_RD.detach()[part].requires_grad_()
        logits_RV = F.linear(x, problem.W_VD)
        ce_R = F.cross_entropy(logits_RV, problem.targets_BSH.view(-1)[part], reduction="none")
        ((ce_R * problem.weights_BSH.view(-1)[part]).sum() / problem.rows).backward()
        gradients.append(x.grad)
        del logits_RV, ce_R, x  # or two chunks would live at a time
    x_RD.backward(torch.cat(gradients))


def torch_fused(problem: Problem, batch_chunk_size: int | None = None) -> None:
    """``F.linear_cross_entropy``; to weigh its targets, ``reduction="none"`` is needed."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=batch_chunk_size)
    x_RD = torch.stack(problem.hidden_HBSD, 2).view(problem.rows, -1)
    ce_R = F.linear_cross_entropy(
        x_RD, problem.W_VD, problem.targets_BSH.view(-1), reduction="none", options=options
    )
    ((ce_R * problem.weights_BSH.view(-1)).sum() / problem.rows).backward()


def torch_fused_tuned(problem: Problem) -> None:
    torch_fused(problem, CHUNK_ROWS)


# ours -----------------------------------------------------------------------------------------


def measure_only(problem: Problem) -> None:
    workspace = workspace_of(WORKSPACE_BYTES, problem.product_dtype)
    measure_ce(
        problem.hidden_HBSD, problem.matrices, problem.targets_BSH, problem.valid_BSH, workspace
    )


# what is compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scheme:
    """A way to compute the gradients, and the weights that it stands for.

    Attributes:
        run: leaves the gradients in ``.grad``.
        weights: the same weights from plain cross-entropies, to check against.
        frozen: whether the unembedding gets no gradient.
        checked: whether there are gradients to check.
    """

    run: Callable[[Problem], None]
    weights: Callable[[Problem, Tensor], Tensor] = lambda problem, ce_BSH: problem.weights_BSH
    frozen: bool = False
    checked: bool = True


def known_scheme(weights: Callable[[Problem], Tensor], *, frozen: bool = False) -> Scheme:
    def run(problem: Problem) -> None:
        weights_BSH = weights(problem)
        workspace = workspace_of(WORKSPACE_BYTES, problem.product_dtype)
        learn(problem, lambda ce, part: weights_BSH, "known", workspace, frozen=frozen)

    return Scheme(run, lambda problem, ce_BSH: weights(problem), frozen)


def weighted_scheme(weighting: Weighting, held_share: float = 1.0) -> Scheme:
    """``held_share``: how much of a row's logits the workspace holds, at least one chunk."""

    def run(problem: Problem) -> None:
        held_rows = max(CHUNK_ROWS, int(held_share * problem.targets_BSH[0].numel()))
        row_bytes = len(problem.W_VD) * problem.product_dtype.itemsize
        workspace = workspace_of(min(WORKSPACE_BYTES, held_rows * row_bytes), problem.product_dtype)
        learn_weighted(problem, weighting, workspace)

    def weights(problem: Problem, ce_BSH: Tensor) -> Tensor:
        return weighting.weights(Signals(problem.valid_BSH, ce_BSH, problem.reference_ce_BSH))

    return Scheme(run, weights)


BARE = "three products alone"
KNOWN, ZEROS = "known", "known, 30 % zeros"
TOKEN, SEQUENCE = "rho1 weighted, heads", "rho1 weighted, sequence, fits"
SKIP, SKIP_HALF, SKIP_CHUNK = (
    "rho1 token_skip, fits",
    "rho1 token_skip, half fits",
    "rho1 token_skip, one chunk fits",
)
TOKEN_SKIP = Rho1(mode="token_skip", skip_fraction=SKIPPED)

OTHERS = {
    "stacked 4D logits": Scheme(stacked_logits),
    "head by head": Scheme(head_by_head),
    "chunks with backward": Scheme(backward_in_chunks),
    "F.linear_cross_entropy": Scheme(torch_fused),
    "F.linear_cross_entropy, 512-row chunks": Scheme(torch_fused_tuned),
}
OURS = {
    KNOWN: known_scheme(lambda problem: problem.weights_BSH),
    ZEROS: known_scheme(with_zeros),
    TOKEN: weighted_scheme(Rho1(compete="heads", center="none")),
    SEQUENCE: weighted_scheme(Rho1()),
    "rho1 weighted, sequence, one chunk fits": weighted_scheme(Rho1(), 0.0),
    SKIP: weighted_scheme(TOKEN_SKIP),
    SKIP_HALF: weighted_scheme(TOKEN_SKIP, 0.5),
    SKIP_CHUNK: weighted_scheme(TOKEN_SKIP, 0.0),
    "known, frozen unembedding": known_scheme(lambda problem: problem.weights_BSH, frozen=True),
    "only measured": Scheme(measure_only, checked=False),
}
SCHEMES = OTHERS | OURS
OWN_SCHEMES = {
    name: SCHEMES[name]
    for name in ("stacked 4D logits", "head by head", KNOWN, ZEROS, TOKEN, SEQUENCE, SKIP)
}
"""What is measured where each head has a matrix of its own."""

MANY_ROWS = [
    "stacked 4D logits",
    "chunks with backward",
    "F.linear_cross_entropy, 512-row chunks",
    KNOWN,
    SKIP,
]  # the memory of the others grows in the same way


# measurements ---------------------------------------------------------------------------------


def measure_seconds(problem: Problem, schemes: dict[str, Scheme], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each scheme, the bare products among them."""
    runs = {BARE: bare_products} | {name: scheme.run for name, scheme in schemes.items()}
    least = dict.fromkeys(runs, float("inf"))
    for round_number in range(rounds):
        say(f"time, round {round_number + 1} of {rounds}")
        for name, run in runs.items():
            forget_gradients(problem)
            start = time.process_time()
            run(problem)
            least[name] = min(least[name], time.process_time() - start)
    return least


def measure_bytes(problem: Problem, names: Iterable[str]) -> dict[str, int]:
    """Growth of resident memory while each scheme runs, in forked children of this process."""
    if sys.platform != "linux":
        return {}
    context = multiprocessing.get_context("fork")
    waiting, growth = list(names), {}
    while waiting:
        batch = [waiting.pop(0) for _ in range(min(len(waiting), os.cpu_count() or 1))]
        say(f"memory, {problem.rows} rows: {', '.join(batch)}")
        running = []
        for name in batch:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=send_growth, args=(SCHEMES[name], problem, sender))
            child.start()
            running.append((name, child, receiver))
        for name, child, receiver in running:
            try:
                growth[name] = receiver.recv()
            except EOFError:
                say(f"{name} ended early, perhaps for want of memory")
            child.join()
    return growth


def send_growth(scheme: Scheme, problem: Problem, sender: Connection) -> None:
    """In the child: its highest resident size begins at what it inherits.

    The scheme runs on a small problem first: a child does not inherit the pages of the libraries
    that it will run.
    """
    H, D = len(problem.hidden_HBSD), problem.W_VD.shape[1]
    own = len(problem.matrices) > 1
    scheme.run(make_problem(8 * H, D, vocab=64, heads=H, dtype=problem.W_VD.dtype, own=own))
    workspace_of.cache_clear()
    before = psutil.Process().memory_info().rss
    scheme.run(problem)
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def measure_errors(
    dtype: torch.dtype, schemes: dict[str, Scheme], *, own: bool
) -> dict[str, float]:
    """Norm of the difference over the norm, of all gradients together, against float64."""
    problem = make_problem(rows=512, dim=256, vocab=8192, heads=4, dtype=dtype, own=own)
    errors = {}
    for name, scheme in schemes.items():
        if scheme.checked:
            forget_gradients(problem)
            scheme.run(problem)
            found = gradients_of([*problem.hidden_HBSD, *problem.matrices])
            wanted = float64_gradients(problem, scheme)
            errors[name] = float((found - wanted).norm() / wanted.norm())
    return errors


def float64_gradients(problem: Problem, scheme: Scheme) -> Tensor:
    """Plain autograd with the weights that the scheme stands for."""
    hidden = [x.detach().double().requires_grad_() for x in problem.hidden_HBSD]
    matrices = [W.detach().double().requires_grad_(not scheme.frozen) for W in problem.matrices]
    logits_BSHV = torch.stack(
        [x @ matrices[h % len(matrices)].t() for h, x in enumerate(hidden)], 2
    )
    ce_BSH = F.cross_entropy(logits_BSHV.movedim(-1, 1), problem.targets_BSH, reduction="none")
    weights_BSH = scheme.weights(problem, ce_BSH.detach())
    ((ce_BSH * weights_BSH).sum() / problem.rows).backward()
    return gradients_of([*hidden, *matrices])


def gradients_of(leaves: list[Tensor]) -> Tensor:
    return torch.cat([leaf.grad.double().flatten() for leaf in leaves if leaf.grad is not None])


# the report -----------------------------------------------------------------------------------


@dataclass
class Figures:
    """All that was measured, by the name of the scheme."""

    seconds: dict[str, float]
    growth: dict[str, int]
    errors: dict[str, float]
    gradient_bytes: int
    growth_many: dict[str, int] = field(default_factory=dict)
    gradient_bytes_many: int = 0
    rows_many: int = 0

    def time_over_bare(self, name: str) -> float:
        """What the scheme's time is to that of the products alone."""
        return self.seconds[name] / self.seconds[BARE]


def table(figures: Figures) -> list[str]:
    columns = ["scheme", "time / bare products", "extra memory / gradients"]
    if figures.growth_many:
        columns.append(f"the same, {figures.rows_many} rows")
    columns.append("gradient error")
    lines = [as_row(columns), "|---" * len(columns) + "|"]
    for name in (name for name in SCHEMES if name in figures.seconds):
        cells = [f"**{name}**" if name in OURS else name, f"{figures.time_over_bare(name):.2f}"]
        cells.append(ratio(figures.growth.get(name), figures.gradient_bytes))
        if figures.growth_many:
            cells.append(ratio(figures.growth_many.get(name), figures.gradient_bytes_many))
        cells.append(f"{figures.errors[name]:.1e}" if name in figures.errors else "")
        lines.append(as_row(cells))
    return lines


def as_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def ratio(part: int | None, whole: int) -> str:
    return "" if part is None else f"{part / whole:.2f}"


def goals(figures: Figures, dtype: torch.dtype) -> list[str]:
    """The goals that can be judged from these figures, each with what was found."""
    seconds = figures.seconds
    best_other = min(OTHERS, key=seconds.__getitem__)

    def over_known(name: str) -> float:
        return seconds[name] / seconds[KNOWN]

    lines = ["| goal | found | |", "|---|---|---|"]
    bounds = [
        (f"{KNOWN} <= 1.05 x the three products", figures.time_over_bare(KNOWN), 1.05),
        (f"{TOKEN} <= 1.03 x {KNOWN}", over_known(TOKEN), 1.03),
        (f"{SEQUENCE} <= 1.03 x {KNOWN}", over_known(SEQUENCE), 1.03),
        (f"{SKIP} <= 0.90 x {KNOWN}", over_known(SKIP), 0.90),
        (f"{SKIP_HALF} <= 1.05 x {KNOWN}", over_known(SKIP_HALF), 1.05),
        (f"{SKIP_CHUNK} <= 1.05 x {KNOWN}", over_known(SKIP_CHUNK), 1.05),
        (f"{ZEROS} <= 0.80 x {KNOWN}", over_known(ZEROS), 0.80),
    ]
    lines += [goal(text, f"{found:.3f}", found <= bound) for text, found, bound in bounds]
    gain = seconds[best_other] / seconds[KNOWN]
    lines.append(goal(f"{KNOWN} >= 1.3 x faster than {best_other}", f"{gain:.2f}", gain >= 1.3))
    for growth, gradients, where in (
        (figures.growth, figures.gradient_bytes, ""),
        (figures.growth_many, figures.gradient_bytes_many, f", {figures.rows_many} rows"),
    ):
        beyond = [(growth[name] - gradients) / MEBIBYTE for name in OURS if name in growth]
        if beyond:
            text = f"memory beyond the gradients <= 256 MiB, every schedule{where}"
            lines.append(goal(text, f"{max(beyond):.0f} MiB", max(beyond) <= 256))
    limit = 1e-6 if dtype == torch.float32 else 3e-3
    worst = max(error for name, error in figures.errors.items() if name in OURS)
    text = f"gradient error <= {limit:.0e}, every schedule"
    lines.append(goal(text, f"{worst:.1e}", worst <= limit))
    return lines


def goal(text: str, found: str, met: bool) -> str:
    return f"| {text} | {found} | {'met' if met else 'MISSED'} |"


def describe_machine(threads: int) -> str:
    """CPU family and instruction set, in words that fit any machine of the kind."""
    capability = torch.backends.cpu.get_cpu_capability()
    count = f"{threads} thread" + ("s" if threads != 1 else "")
    return f"{os.cpu_count()}-core {platform.machine()} CPU ({capability}), {count}"


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048, help="targets: positions times heads")
    parser.add_argument("--dim", type=int, default=768, help="width of the hidden states")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="the least time of these counts")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--memory-rows", type=int, default=8192, help="second memory column; 0: none"
    )
    parser.add_argument("--markdown", type=Path, help="write the report to this file as well")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    sizes = {"dim": arguments.dim, "vocab": arguments.vocab, "heads": arguments.heads}
    problem = make_problem(arguments.rows, dtype=dtype, **sizes)
    many = make_problem(arguments.memory_rows or arguments.heads, dtype=dtype, **sizes)

    bare_products(make_problem(CHUNK_ROWS, dtype=dtype, **sizes))  # the libraries' own buffers
    figures = Figures(
        growth=measure_bytes(problem, SCHEMES),  # first, while the allocator holds nothing free
        growth_many=measure_bytes(many, MANY_ROWS if arguments.memory_rows else []),
        errors=measure_errors(dtype, SCHEMES, own=False),
        seconds=measure_seconds(problem, SCHEMES, arguments.rounds),
        gradient_bytes=problem.gradient_bytes,
        gradient_bytes_many=many.gradient_bytes,
        rows_many=many.rows,
    )
    own_problem = make_problem(arguments.rows, dtype=dtype, own=True, **sizes)
    own_figures = Figures(
        growth=measure_bytes(own_problem, OWN_SCHEMES),
        errors=measure_errors(dtype, OWN_SCHEMES, own=True),
        seconds=measure_seconds(own_problem, OWN_SCHEMES, arguments.rounds),
        gradient_bytes=own_problem.gradient_bytes,
    )
    report = [
        f"{datetime.date.today()}, {describe_machine(arguments.threads)}, "
        f"torch {torch.__version__.split('+')[0]}, {arguments.dtype}: {problem.rows} rows, "
        f"width {arguments.dim}, vocabulary {arguments.vocab}, {arguments.heads} heads, least of "
        f"{arguments.rounds} rounds; the bare products took {figures.seconds[BARE]:.2f} s.",
        "",
        *table(figures),
        "",
        *goals(figures, dtype),
        "",
        f"The same with a matrix for each head, {arguments.rows // arguments.heads} rows for each; "
        f"the bare products took {own_figures.seconds[BARE]:.2f} s.",
        "",
        *table(own_figures),
    ]
    if arguments.rows < 2048 or arguments.dim < 768:
        report += ["", "The goals are written for at least 2048 rows and a width of 768."]
    print("\n".join(report))
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
