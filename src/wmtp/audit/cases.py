"""The runs that are audited: every weighting, trunk, head, precision and way to save memory.

Sizes are small where only calls matter, and real where numbers of tokens and logits do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from wmtp.config import Config, Recipe, Settings
from wmtp.runtime.device import Precision
from wmtp.weighting import Weighting, find_weighting

TRUNKS: Final[dict[str, dict[str, Any]]] = {
    "llama": {"kind": "llama", "num_kv_heads": 2},
    "gpt2": {"kind": "hf", "architecture": "gpt2"},
}
TOKEN_SKIP: Final = {"algorithm": "rho1-wmtp", "mode": "token_skip"}
WEIGHTINGS: Final[dict[str, dict[str, Any]]] = {
    "baseline": {"algorithm": "baseline-mtp"},
    "rho1 weighted": {"algorithm": "rho1-wmtp"},
    "rho1 token_skip": TOKEN_SKIP,
    "critic stage 1": {"algorithm": "critic-wmtp", "stage1": {"batch_size": 1}},
    "critic stage 2": {"algorithm": "critic-wmtp"},
    "column": {"algorithm": "column"},
    "shuffled": {"algorithm": "shuffled", "around": TOKEN_SKIP},
    "random_matched": {"algorithm": "random_matched", "around": {"algorithm": "rho1-wmtp"}},
}
HEADS: Final = ("sequential", "parallel", "linear")
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

FULL_SIZES: Final[dict[str, dict[str, Any]]] = {
    "Medium": {
        "vocab_size": 32000, "hidden_size": 1024, "num_layers": 24, "num_heads": 16,
        "num_kv_heads": 4, "intermediate_size": 4096,
    },
    "Large": {
        "vocab_size": 32000, "hidden_size": 1536, "num_layers": 24, "num_heads": 24,
        "num_kv_heads": 6, "intermediate_size": 6144, "tie_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run to audit.

    Attributes:
        name: what tells it from the others.
        settings: config and recipe.
        stage1: the steps of the critic's stage 1.
        scores_cached: rho1's reference scores come with the data.
        tiled_attention: attention is made in tiles; None as the device likes it.
    """

    name: str
    settings: Settings
    stage1: bool = False
    scores_cached: bool = True
    tiled_attention: bool | None = None


def small_cases() -> tuple[Case, ...]:
    """One case for each weighting, and between them every trunk, head, precision and so on."""
    chosen = (
        ("llama", "baseline", "sequential", "fp32", False),
        ("gpt2", "rho1 weighted", "linear", "bf16", True),
        ("llama", "rho1 token_skip", "parallel", "fp16", True),
        ("gpt2", "critic stage 1", "linear", "fp32", False),
        ("gpt2", "critic stage 2", "sequential", "fp32", False),
        ("llama", "column", "linear", "bf16", False),
        ("gpt2", "shuffled", "parallel", "bf16", False),
        ("llama", "random_matched", "sequential", "bf16", True),
    )
    return tuple(case(*parts, horizon=2) for parts in chosen)


def matrix() -> Iterator[Case]:
    """Every weighting x trunk x precision x checkpointing; kinds of heads take turns.

    Beside them what has lines of its own: Muon, frozen trunks, rows of one document, a reference
    that runs, heads that distill or attend to the trunk's rows, dropout.
    """
    options = product(WEIGHTINGS, TRUNKS, PRECISIONS, (False, True))
    for number, (weighting, trunk, precision, checkpointing) in enumerate(options):
        heads = HEADS[(number + number // len(HEADS)) % len(HEADS)]
        yield case(trunk, weighting, heads, precision, checkpointing)
    for trunk, heads in product(TRUNKS, HEADS):
        yield case(trunk, "baseline", heads, "fp32", False, frozen=True)
        yield case(trunk, "rho1 weighted", heads, "bf16", False, scores_cached=False)
    for precision in PRECISIONS:
        yield case("llama", "baseline", "sequential", precision, False, optimizer="muon")
        yield case("llama", "baseline", "sequential", precision, False, packed=False)
        yield case("gpt2", "baseline", "linear", precision, False, packed=False, dropout=0.1)
        yield case("llama", "rho1 token_skip", "sequential", precision, False, context="trunk")
        yield case("llama", "baseline", "parallel", precision, True, distill=0.5)
        for trunk, packed in product(TRUNKS, (False, True)):
            yield case(
                trunk, "baseline", "sequential", precision, False, packed=packed, length=1024
            )


def case(
    trunk: str,
    weighting: str,
    heads: str,
    precision: str,
    checkpointing: bool,
    *,
    scores_cached: bool = True,
    optimizer: str = "adamw",
    packed: bool = True,
    frozen: bool = False,
    dropout: float = 0.0,
    distill: float = 0.0,
    context: str = "chained",
    length: int = 256,
    horizon: int = 3,
) -> Case:
    """A small model with a real vocabulary: its logits are more than the loss may hold."""
    model = {
        "vocab_size": 32000,
        "hidden_size": 64,
        "num_layers": 1,
        "num_heads": 4,
        "dropout": dropout,
        "heads": {"kind": heads, "horizon": horizon, "context": context},
        **TRUNKS[trunk],
    }
    settings = settings_of(
        model,
        WEIGHTINGS[weighting],
        precision,
        data={
            "max_length": length,
            "batch_size": 4096 // (length * horizon),
            "pack_sequences": packed,
        },
        train={
            "gradient_checkpointing": checkpointing,
            "freeze": "trunk" if frozen else "none",
        },
        loss={"distill": distill},
        optim={"name": optimizer},
    )
    more = {
        "checkpointed": checkpointing,
        "reference runs": not scores_cached,
        optimizer: optimizer != "adamw",
        "one document a row": not packed,
        "frozen trunk": frozen,
        "dropout": dropout > 0,
        "distilled": distill > 0,
        f"context {context}": context != "chained",
        f"rows of {length}": length != 256,
        f"{horizon} heads": horizon != 3,
    }
    words = [weighting, trunk, heads, precision, *(word for word, is_so in more.items() if is_so)]
    stage1 = weighting == "critic stage 1"
    return Case(", ".join(words), settings, stage1=stage1, scores_cached=scores_cached)


def full_size_case(
    size: str,
    precision: str,
    batch_size: int,
    *,
    checkpointing: bool,
    length: int = 2048,
    tiled_attention: bool | None = None,
) -> Case:
    """A training step of a model that someone would train, at its real sizes."""
    settings = settings_of(
        {**FULL_SIZES[size], "heads": {"horizon": 4}},
        WEIGHTINGS["baseline"],
        precision,
        data={"max_length": length, "batch_size": batch_size},
        train={"gradient_checkpointing": checkpointing},
    )
    saved = ", checkpointed" if checkpointing else ""
    name = f"{size}, {precision}, {batch_size} x {length}{saved}"
    return Case(name, settings, tiled_attention=tiled_attention)


def settings_of(
    model: dict[str, Any],
    weighting: dict[str, Any],
    precision: str,
    *,
    data: dict[str, Any],
    train: dict[str, Any],
    **sections: dict[str, Any],
) -> Settings:
    """Settings of a run whose data nobody opens.

    Raises:
        pydantic.ValidationError: they are no recipe.
    """
    recipe = {
        "model": model,
        "data": {"train": {"sources": ["none"], **data}},
        "weighting": build_weighting(weighting),
        "train": {"max_steps": 3, **train},
        **sections,
    }
    config = {"devices": {"compute_backend": "auto", "mixed_precision": precision}}
    return Settings(config=Config.model_validate(config), recipe=Recipe.model_validate(recipe))


def build_weighting(keys: dict[str, Any]) -> Weighting:
    """A weighting from a recipe's keys, one around another included."""
    fields = {
        name: build_weighting(value) if name == "around" else value
        for name, value in keys.items()
        if name != "algorithm"
    }
    return find_weighting(keys["algorithm"]).model_validate(fields)
