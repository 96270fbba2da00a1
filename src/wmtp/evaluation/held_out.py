"""How well each head predicts text it was not trained on."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from wmtp.data.batches import Batch
from wmtp.distributed.ranks import ALONE, Ranks
from wmtp.distributed.sharding import let_go
from wmtp.evaluation.totals import HeadTotals, TextTotals
from wmtp.loss import Workspace, measure_ce
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.device import Device


@torch.no_grad()
def measure_heads(
    model: MultiTokenModel,
    batches: Iterable[Batch],
    device: Device,
    head_scale: tuple[float, ...],
    workspace: Workspace,
    ranks: Ranks = ALONE,
    bytes_V: Tensor | None = None,
) -> dict[str, float]:
    """Held-out figures of every head; the model is left in the mode it came in.

    Several ranks measure their own batches, as many each, and all get the figures of all.

    Args:
        model: what is measured.
        batches: of this rank.
        device: where the model is.
        head_scale: ``c``, one factor per head.
        workspace: scratch memory of the loss.
        ranks: who shares the batches.
        bytes_V: UTF-8 bytes that each id stands for, 0 for special ones; None if that is unknown.

    Returns:
        ``loss`` (all weights 1), ``perplexity`` and, with ``bytes_V``, ``bits_per_byte`` of head 0,
        ``ce/head_k`` in nats and ``accuracy/head_k``. Empty if nothing is valid.
    """
    totals = HeadTotals(model.horizon, device)
    text = None if bytes_V is None else TextTotals(bytes_V.to(device.torch_device), device)
    was_training = model.training
    model.eval()
    for batch in batches:
        here = batch.to(device.torch_device)
        with device.autocast():
            hidden = model(here.tokens_BS, here.targets_BSH, here.documents_BS)
        ce_BSH, correct_BSH = measure_ce(
            hidden, model.unembeddings, here.targets_BSH, here.valid_BSH, workspace
        )
        totals.add(ce_BSH, correct_BSH, here.valid_BSH)
        if text is not None:
            text.add(ce_BSH, here.targets_BSH, here.valid_BSH)
    model.train(was_training)
    let_go(model)
    ranks.sum_in_place([*totals.tensors().values(), *([] if text is None else text.tensors())])
    loss = totals.mean_loss(head_scale)
    if loss is None:
        return {}
    figures = totals.figures()
    perplexity = math.exp(min(figures["ce/head_0"], 700.0))  # e^700 is the last finite one
    row = {"loss": loss, "perplexity": perplexity}
    bits_per_byte = None if text is None else text.bits_per_byte()
    if bits_per_byte is not None:
        row["bits_per_byte"] = bits_per_byte
    return row | figures
