"""The weighted multi-token loss: the plain formula, and one pass that never holds all logits.

``weighted_mtp_loss`` is the definition. ``fused_mtp_loss`` computes the same number and the same
gradients from the heads' hidden states, a few hundred rows of logits at a time: three matrix
products per target, two where the unembedding is frozen, none where the weight is zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wmtp.loss.sweep import Scope, Sweep, Weigh
from wmtp.loss.workspace import Workspace


def weighted_mtp_loss(
    ce_BSH: Tensor,
    weights_BSH: Tensor,
    valid_BSH: Tensor,
    valid_count: Tensor | float,
    head_scale_H: Tensor | None = None,
) -> Tensor:
    """Sum of weight times cross-entropy over every valid target, per valid target.

        L = (1 / N) * sum over (b, s, h) valid of  c[h] * w[b, s, h] * ce[b, s, h]

    Head ``h`` at position ``s`` predicts token ``s + 1 + h``; the last ``h + 1`` positions of a
    sequence have no such token and are not valid. ``N`` is passed in, and not counted here,
    because one optimizer step spans several micro-batches and ranks: dividing each by its own
    count would weigh a short batch more than a long one. Weights are not renormalized, so a
    token given weight 2 pulls twice as hard; with all weights 1 this is plain MTP.

    Args:
        ce_BSH: cross-entropy of each target in nats, finite wherever valid.
        weights_BSH: importance of each target, no gradient, at least 0.
        valid_BSH: True where the target exists and is to be learned.
        valid_count: ``N``, the valid targets of the whole optimizer step over all ranks, each
            counted with its head's scale.
        head_scale_H: ``c``, one factor per head; 1 for every head when absent.

    Returns:
        Scalar in nats per target. Zero, with zero gradient, if nothing is valid.

    Raises:
        ValueError: the three tensors differ in shape.

    Source:
        Gloeckle et al. 2024 (arXiv:2404.19737), section 2, with the weight w added.

    Example:
        Two positions, two heads; the second head runs off the end at the last position.

        >>> ce = torch.tensor([[[2.0, 4.0], [1.0, 9.0]]])
        >>> valid = torch.tensor([[[True, True], [True, False]]])
        >>> weights = torch.tensor([[[1.0, 0.5], [3.0, 7.0]]])
        >>> weighted_mtp_loss(ce, weights, valid, valid_count=3)  # (2 + 2 + 3) / 3
        tensor(2.3333)
    """
    if not ce_BSH.shape == weights_BSH.shape == valid_BSH.shape:
        shapes = [tuple(t.shape) for t in (ce_BSH, weights_BSH, valid_BSH)]
        raise ValueError(f"ce, weights and valid must have one shape, not {shapes}")
    terms_BSH = torch.where(valid_BSH, ce_BSH, 0) * weights_BSH
    if head_scale_H is not None:
        terms_BSH = terms_BSH * head_scale_H
    count = torch.as_tensor(valid_count, device=ce_BSH.device)
    return terms_BSH.sum() / count.clamp(min=torch.finfo(torch.float32).tiny)


def distilled_ce(logits_BSHV: Tensor, ce_BSH: Tensor, share: float) -> Tensor:
    """Cross-entropy against targets that the trunk's own distribution has a share in.

        d[b, s, h] = (1 - a) * ce[b, s, h] - a * sum over v of  p[v] * log q[v]

    ``q`` is the distribution of head ``h`` at ``s`` and ``p`` that of head 0 at ``s + h``, which
    predicts the same token ``s + 1 + h`` and gets no gradient. Head 0, and the last ``h``
    positions of a row, where the row has no ``s + h``, keep ``ce``. In ``weighted_mtp_loss`` it
    stands in for ``ce``; what is valid, weights and ``N`` stay what they are. Like that function
    this is the definition that ``fused_mtp_loss`` is tested against.

    Args:
        logits_BSHV: of every head.
        ce_BSH: cross-entropy of the labels in nats.
        share: ``a``, from 0 to 1.

    Source:
        Hinton et al. 2015 (arXiv:1503.02531), section 2, at temperature 1.

    Example:
        Two positions, two heads, a vocabulary of two, all labels token 0. Head 1 at position 0
        gives it 1/4, the trunk at position 1 gives it 1/2: -1/2 log 1/4 - 1/2 log 3/4 = 0.8370,
        halfway between which and the label's -log 1/4 = 1.3863 lies 1.1116.

        >>> q = torch.tensor([[[[0.9, 0.1], [0.25, 0.75]], [[0.5, 0.5], [0.2, 0.8]]]])
        >>> distilled_ce(q.log(), -q[..., 0].log(), share=0.5)
        tensor([[[0.1054, 1.1116],
                 [0.6931, 1.6094]]])
    """
    S, H = logits_BSHV.shape[1:3]
    found = [ce_BSH[:, :, 0]]
    for head in range(1, H):
        taught = max(0, S - head)
        p_BTV = logits_BSHV[:, S - taught :, 0].detach().softmax(-1)
        log_q_BTV = logits_BSHV[:, :taught, head].log_softmax(-1)
        of_trunk_BT = -(p_BTV * log_q_BTV).sum(-1)
        ce_BS = ce_BSH[:, :, head]
        shared_BT = (1 - share) * ce_BS[:, :taught] + share * of_trunk_BT
        found.append(torch.cat((shared_BT, ce_BS[:, taught:]), dim=1))
    return torch.stack(found, dim=2)


def z_loss_ce(logits_BSHV: Tensor, ce_BSH: Tensor, factor: float) -> Tensor:
    """Cross-entropy, and a price on logits whose exponentials do not sum to 1.

        d[b, s, h] = ce[b, s, h] + k * z[b, s, h]**2,    z = log sum over v of exp(Z[v])

    A softmax does not notice when all logits grow together; their rounding does, above all in 16
    bits. In ``weighted_mtp_loss`` it stands in for ``ce``, under the same weight and the same
    factor of its head. Like that function this is the definition that ``fused_mtp_loss`` is tested
    against.

    Args:
        logits_BSHV: of every head.
        ce_BSH: cross-entropy of the labels in nats.
        factor: ``k``, at least 0; 1e-4 in the source.

    Source:
        Chowdhery et al. 2022 (arXiv:2204.02311), section 5.

    Example:
        Two logits of 1: z = 1 + log 2 = 1.6931, ce = log 2 = 0.6931, and 0.6931 + 0.1 * 2.8667.

        >>> z_loss_ce(torch.ones(1, 1, 1, 2), torch.full((1, 1, 1), 2.0).log(), factor=0.1)
        tensor([[[0.9798]]])
    """
    return ce_BSH + factor * logits_BSHV.logsumexp(-1).square()


@dataclass(frozen=True)
class LossOutput:
    """What one micro-batch gave. All but ``loss`` are constants for autograd.

    Attributes:
        loss: scalar float32; add it to others and call ``backward()``, but do not multiply it
            (see ``fused_mtp_loss``). It requires no gradient where only matrices learn: theirs is
            there already.
        ce_BSH: cross-entropy in nats, float32, 0 where it was not measured.
        weights_BSH: the weights used, float32, 0 where not valid.
        measured_BSH: True where ``ce_BSH`` holds a measurement: valid, and not known beforehand
            to have weight 0.
        correct_BSH: True where the target has the largest logit.
        gradient_rows: rows that went through the gradient's matrix products.
    """

    loss: Tensor
    ce_BSH: Tensor
    weights_BSH: Tensor
    measured_BSH: Tensor
    correct_BSH: Tensor
    gradient_rows: int


def fused_mtp_loss(
    hidden_HBSD: Sequence[Tensor],
    unembeddings: Sequence[Tensor],
    targets_BSH: Tensor,
    valid_BSH: Tensor,
    weigh: Weigh,
    scope: Scope,
    *,
    valid_count: float,
    head_scale: Sequence[float] | None = None,
    unembedding_gradients: Sequence[Tensor | None] | None = None,
    workspace: Workspace | None = None,
    loss_scale: float = 1.0,
    kept_fraction: float = 1.0,
    valid_targets: int | None = None,
    distill: float = 0.0,
    z_loss: float = 0.0,
) -> LossOutput:
    """``weighted_mtp_loss`` and its gradients in one pass over the targets.

    For a chunk of rows ``X`` (targets of all heads that share ``W``) and logits ``Z = X @ W.T``::

        m = rowmax(Z);  P = softmax(Z)                      in place
        ce = m - log(rowmax(P)) - Z[target]                 exact: rowmax(P) >= 1/V
        P[target] -= 1
        dX = f * (P @ W);   dW += P.T @ (f * X)             f = loss_scale * c * w / N

    The weight touches ``[rows, D]`` only, never ``[rows, V]``. Gradients are computed here, in
    the forward pass: those of the hidden states are handed over in ``backward()``; that of the
    unembedding is **added to** ``unembedding_gradients`` (pass ``W.grad``), so that no second
    ``[V, D]`` tensor exists. Therefore the returned loss must reach ``backward()`` with
    gradient 1, which is checked: scale through ``loss_scale``, divide through ``valid_count``.

    Args:
        hidden_HBSD: H tensors ``[B, S, D]``, normed, ready for the unembedding.
        unembeddings: one matrix ``[V, D]`` shared by the heads, or one for each head; the same
            tensor may stand there more than once.
        targets_BSH: int64, token ``s + 1 + h``; any value where not valid.
        valid_BSH: True where the target exists and is to be learned.
        weigh: gives the weights, see ``Weigh``.
        scope: what the weights depend on; decides the schedule.
        valid_count: ``N`` of the whole optimizer step, each target counted with its head's scale.
        head_scale: ``c``, one factor per head, at least 0; 1 when absent.
        unembedding_gradients: for each unembedding its float32 accumulator, or None if it is
            frozen; None alone if all are.
        workspace: scratch memory; keep one for the run.
        loss_scale: factor of the gradients alone (fp16 loss scaling), not of ``loss``.
        kept_fraction: the most that the weighting gives a weight of a row's valid targets. It
            saves work where ``Workspace.exact_counts`` is False and heads share one matrix.
        valid_targets: number of valid targets here, where it is known without asking the device;
            it saves work in the same places.
        distill: ``a``, the share of the trunk's own distribution in the targets of the further
            heads, from 0 to 1, see ``distilled_ce``. One more product for each position, or for
            each target where heads have matrices of their own. ``weigh`` sees, and ``ce_BSH``
            holds, the labels' cross-entropy as ever.
        z_loss: ``k``, at least 0; each target costs ``ce + k * z**2`` with ``z`` the logarithm of
            the sum of its row's exponentials, see ``z_loss_ce``. No further pass over logits, and
            nothing at all where it is 0. Not together with ``distill``.

    Raises:
        ValueError: shapes do not agree, or neither a hidden state nor a matrix wants a gradient.

    Source:
        The idea of gradients in the forward pass: Hsu et al. 2024 (arXiv:2410.10989).
    """
    B, S, H = targets_BSH.shape
    if len(hidden_HBSD) != H or any(x.shape[:2] != (B, S) for x in hidden_HBSD):
        found = [tuple(x.shape) for x in hidden_HBSD]
        raise ValueError(f"targets {(B, S, H)} need {H} hidden states [{B}, {S}, D], not {found}")
    if valid_BSH.shape != targets_BSH.shape:
        raise ValueError(f"valid {tuple(valid_BSH.shape)} and targets {(B, S, H)} differ")
    scale_H = [1.0] * H if head_scale is None else list(head_scale)
    if len(scale_H) != H or min(scale_H) < 0:
        raise ValueError(f"head_scale must be {H} factors of at least 0, not {scale_H}")
    gradients = (
        [None] * len(unembeddings) if unembedding_gradients is None else unembedding_gradients
    )
    if len(gradients) != len(unembeddings):
        raise ValueError(f"{len(unembeddings)} unembeddings, but {len(gradients)} gradients")
    if not any(x.requires_grad for x in hidden_HBSD) and all(g is None for g in gradients):
        raise ValueError("nothing requires a gradient: use measure_ce to measure only")
    if not 0 < kept_fraction <= 1:
        raise ValueError(f"kept_fraction is {kept_fraction}; it must be above 0 and at most 1")
    if not 0 <= distill <= 1:
        raise ValueError(f"distill is {distill}; it must be from 0 to 1")
    if z_loss < 0 or (z_loss > 0 and distill > 0):
        raise ValueError(f"z_loss is {z_loss}; it must be at least 0, and 0 where distill is not")
    sweep = Sweep(hidden_HBSD, unembeddings, targets_BSH, valid_BSH, workspace or Workspace())
    sweep.ask_for_gradients(
        gradients,
        trained_H=[x.requires_grad for x in hidden_HBSD],
        scale_H=scale_H,
        factor=loss_scale / valid_count if valid_count > 0 else 0.0,
        kept_fraction=kept_fraction,
        valid_targets=valid_targets,
    )
    if distill > 0:
        sweep.ask_the_trunk(hidden_HBSD[0], distill)
    if z_loss > 0:
        sweep.hold_logits_near_zero(z_loss)
    run = {"known": sweep.known, "token": sweep.token, "sequence": sweep.sequence}[scope]
    loss: Tensor = _HandOver.apply(  # type: ignore[no-untyped-call]
        sweep, lambda: run(weigh), loss_scale, *hidden_HBSD
    )
    return LossOutput(
        loss=loss,
        ce_BSH=sweep.ce_R.view(B, S, H),
        weights_BSH=sweep.weights_R.view(B, S, H),
        measured_BSH=sweep.measured_R.view(B, S, H),
        correct_BSH=sweep.correct_R.view(B, S, H),
        gradient_rows=sweep.gradient_rows,
    )


@torch.no_grad()
def measure_ce(
    hidden_HBSD: Sequence[Tensor],
    unembeddings: Sequence[Tensor],
    targets_BSH: Tensor,
    valid_BSH: Tensor,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every valid target and whether it was the likeliest: one product a row.

    Args are those of ``fused_mtp_loss``.

    Returns:
        ``(ce_BSH, correct_BSH)``: float32 nats and bool, both 0 where not valid.
    """
    sweep = Sweep(hidden_HBSD, unembeddings, targets_BSH, valid_BSH, workspace or Workspace())
    sweep.measure(sweep.where_free(sweep.rows_R, sweep.valid_R))
    return sweep.ce_R.view_as(targets_BSH), sweep.correct_R.view_as(targets_BSH)


class _HandOver(torch.autograd.Function):
    """A scalar whose gradients are already known; backward gives them away."""

    @staticmethod
    def forward(
        ctx: Any,
        sweep: "Sweep",
        run: Callable[[], None],
        loss_scale: float,
        *hidden_HBSD: Tensor,
    ) -> Tensor:
        run()
        ctx.sweep = sweep
        terms_R = sweep.scale_R * sweep.weights_R * sweep.loss_R
        return terms_R.sum() * (sweep.factor / loss_scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sweep, ctx.sweep = ctx.sweep, None
        if sweep is None:
            raise RuntimeError("this loss was already sent backward; its gradients are handed over")
        torch._assert_async(  # no host sync on an accelerator
            gradients[0] == 1,
            "fused_mtp_loss must reach backward() with gradient 1: use loss_scale and valid_count",
        )
        return (None, None, None, *sweep.hidden_gradients())
