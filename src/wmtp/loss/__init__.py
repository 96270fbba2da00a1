"""The weighted multi-token loss: the plain formula, and one pass that never holds all logits."""

from wmtp.loss.fused import (
    LossOutput,
    distilled_ce,
    fused_mtp_loss,
    measure_ce,
    weighted_mtp_loss,
    z_loss_ce,
)
from wmtp.loss.sweep import Scope, Weigh
from wmtp.loss.workspace import Workspace

__all__ = [
    "LossOutput",
    "Scope",
    "Weigh",
    "Workspace",
    "distilled_ce",
    "fused_mtp_loss",
    "measure_ce",
    "weighted_mtp_loss",
    "z_loss_ce",
]
