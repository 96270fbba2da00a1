"""The heads beyond the trunk's own next token: one file per kind; the table below names them."""

from wmtp.model.heads.base import Context, ExtraHeads, HeadsShape, Hidden, Kind
from wmtp.model.heads.linear import LinearHeads
from wmtp.model.heads.parallel import ParallelHeads
from wmtp.model.heads.sequential import SequentialHeads
from wmtp.model.llama_shape import LlamaShape

__all__ = ["Context", "ExtraHeads", "HeadsShape", "Hidden", "Kind", "build_heads"]

KINDS: dict[Kind, type[LinearHeads | ParallelHeads | SequentialHeads]] = {
    "sequential": SequentialHeads,
    "parallel": ParallelHeads,
    "linear": LinearHeads,
}


def build_heads(trunk_shape: LlamaShape, heads_shape: HeadsShape) -> ExtraHeads | None:
    """Heads of the kind that is asked for, without numbers yet; None for a horizon of 1."""
    if heads_shape.horizon == 1:
        return None
    return KINDS[heads_shape.kind](trunk_shape, heads_shape)
