"""The frozen reference model of rho1: one cross-entropy per token, the same for every head."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from wmtp.data.batches import Batch, evaluation_batches
from wmtp.data.rows import Rows
from wmtp.loss import Workspace, measure_ce
from wmtp.model.hf_layout import load_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.device import Device


@final
class Reference:
    """A frozen model that tells how hard each token is.

    ``r_t`` is its next-token cross-entropy of token ``t`` given the tokens before it in the same
    document and the same row: what the trained model's head 0 sees, with the same borders. A
    token after the end of a row, which only the extra heads aim at, is scored as in the row it
    begins, so that scores computed here and scores cached per token are the same numbers.
    """

    def __init__(self, model: MultiTokenModel, device: Device, workspace: Workspace) -> None:
        self.model = model.requires_grad_(False).eval().to(device.torch_device)
        self.model.set_tiled_attention(device.tiled_attention)
        self.device = device
        self.workspace = workspace

    @torch.no_grad()
    def next_token_ce(
        self, tokens_BS: Tensor, next_BS: Tensor, valid_BS: Tensor, documents_BS: Tensor | None
    ) -> Tensor:
        """Cross-entropy of each next token, float32 nats ``[B, S]``, 0 where not valid."""
        with self.device.autocast():
            hidden_BSD = self.model.next_token_hidden(tokens_BS, documents_BS)
        ce_BSH, _ = measure_ce(
            (hidden_BSD,),
            self.model.unembeddings[:1],
            next_BS.unsqueeze(2),
            valid_BS.unsqueeze(2),
            self.workspace,
        )
        return ce_BSH.squeeze(2)

    def target_ce(self, batch: Batch) -> Tensor:
        """``r_{s+1+h}`` of every target of a batch, float32 ``[B, S, H]``.

        Tokens up to the end of the row come from one pass over the row; the ``H - 1`` after it
        from a second one over just those. A target there is valid only if all tokens between are
        in one document, so the second pass needs no borders.
        """
        targets_BSH, valid_BSH = batch.targets_BSH, batch.valid_BSH
        H = targets_BSH.shape[2]
        ce_BT = self.next_token_ce(
            batch.tokens_BS, targets_BSH[:, :, 0], valid_BSH[:, :, 0], batch.documents_BS
        )
        if H > 1:
            ahead_BH, ahead_valid_BH = targets_BSH[:, -1], valid_BSH[:, -1]
            ahead_BK = self.next_token_ce(
                ahead_BH[:, :-1], ahead_BH[:, 1:], ahead_valid_BH[:, 1:], None
            )
            ce_BT = torch.cat((ce_BT, ahead_BK), 1)
        return ce_BT.unfold(1, H, 1)


def load_reference(directory: Path, device: Device, workspace: Workspace) -> Reference:
    """Load a Hugging Face directory as a reference; extra heads it may have stay unused.

    Raises:
        CheckpointError: the directory cannot be loaded.
    """
    return Reference(load_model(directory, trunk_only=True), device, workspace)


def score_rows(
    reference: Reference, rows: Rows, batch_size: int, on_progress: Callable[[int], None]
) -> Iterator[Tensor]:
    """Score every row in order; yields ``[B, S]`` on the CPU, the score of each next token."""
    for batch in evaluation_batches(rows, batch_size=batch_size, horizon=1):
        here = batch.to(reference.device.torch_device)
        ce_BS = reference.next_token_ce(
            here.tokens_BS, here.targets_BSH[:, :, 0], here.valid_BSH[:, :, 0], here.documents_BS
        )
        yield ce_BS.cpu()
        on_progress(batch.rows[-1] + 1)


def fingerprint_model(directory: Path) -> str:
    """Hash of a model directory's config and weights."""
    digest = hashlib.sha256()
    for path in sorted([directory / "config.json", *directory.glob("*.safetensors")]):
        if path.exists():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
