"""Toy models that know a little language, so that drafts are accepted often and not always."""

import atexit
import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from tests.model.toys import toy_model
from wmtp.model.multi_token import MultiTokenModel

VOCABULARY = 64
LIKELY = 0.85


@cache
def taught_model(
    kind: str, trunk: str = "llama", hidden: str = "post_norm", context: str = "chained"
) -> MultiTokenModel:
    """Four heads after 150 steps on a chain in which each token has one likely successor.

    Taught once for all workers of a run of the tests.
    """
    model = toy_model(4, hidden, kind=kind, trunk=trunk, context=context, max_seq_length=192)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return teach(model)
    file = Path(tempfile.gettempdir()) / f"wmtp-taught-{run}-{kind}-{trunk}-{hidden}-{context}"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            model.load_state_dict(torch.load(file, weights_only=True))
        else:
            torch.save(teach(model).state_dict(), file)
            for made in (file, Path(lock.name)):
                atexit.register(made.unlink, missing_ok=True)
    return model.eval()


def teach(model: MultiTokenModel) -> MultiTokenModel:
    """Train a model, and leave it ready to decode."""
    model.train()
    generator = torch.Generator().manual_seed(0)
    successors_V3 = torch.randint(0, VOCABULARY, (VOCABULARY, 3), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        x_BT = chain(successors_V3, 16, 29, generator)
        targets_BSH = x_BT[:, 1:].unfold(1, 4, 1)
        logits_BSHV = model.logits(x_BT[:, :25], targets_BSH)
        loss = F.cross_entropy(logits_BSHV.flatten(0, 2), targets_BSH.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def chain(
    successors_V3: torch.Tensor, rows: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Random walks, ``[rows, length]``."""
    tokens = [torch.randint(0, VOCABULARY, (rows,), generator=generator)]
    while len(tokens) < length:
        unlikely = torch.randint(1, 3, (rows,), generator=generator)
        is_likely = torch.rand(rows, generator=generator) < LIKELY
        choice_B1 = torch.where(is_likely, 0, unlikely)[:, None]
        tokens.append(successors_V3[tokens[-1]].gather(1, choice_B1)[:, 0])
    return torch.stack(tokens, dim=1)


def prompts(*lengths: int) -> list[list[int]]:
    """Random tokens, so many in each."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
