"""The model that is trained: a trunk, and heads that look further ahead."""

import torch
from torch import Tensor, nn

from wmtp.model.heads import HeadsShape, SequentialHeads
from wmtp.model.kv_cache import KVCache
from wmtp.model.llama import LlamaShape, LlamaTrunk

INIT_STD = 0.02


class MultiTokenModel(nn.Module):
    """A trunk with ``H - 1`` sequential heads; head ``h`` at ``s`` predicts token ``s + 1 + h``.

    Head ``h`` at position ``s`` sees tokens up to ``s + h`` and none after.
    """

    def __init__(self, trunk_shape: LlamaShape, heads_shape: HeadsShape) -> None:
        super().__init__()
        self.trunk_shape = trunk_shape
        self.heads_shape = heads_shape
        self.trunk = LlamaTrunk(trunk_shape)
        self.heads = SequentialHeads(trunk_shape, heads_shape) if heads_shape.horizon > 1 else None
        self.trunk_frozen = False

    @property
    def horizon(self) -> int:
        """H, how many tokens are predicted at once."""
        return self.heads_shape.horizon

    @property
    def unembedding_VD(self) -> nn.Parameter:
        """The matrix shared by all heads; the embedding itself where the two are tied."""
        return self.trunk.unembedding_VD

    @property
    def num_parameters(self) -> int:
        """How many numbers the optimizer could move, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        return self.trunk.embed_tokens.weight.device

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BSH: Tensor | None = None,
        documents_BS: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Hidden states of every head, ready for ``unembedding_VD``.

        Args:
            tokens_BS: int64, the tokens ``x_s`` that are read.
            targets_BSH: int64, the tokens ``x_{s+1+h}``, of which the heads read those after the
                end of the row as their teacher-forced input. Not needed when H is 1.
            documents_BS: index of each token's document where a row holds several; positions
                attend to their own document only. None means one document a row.

        Returns:
            H tensors ``[B, S, D]``, each after its own last norm.

        Raises:
            ValueError: a row is longer than ``max_seq_length``, or the targets are missing.
        """
        if self.heads is None:
            return (self.next_token_hidden(tokens_BS, documents_BS),)
        if targets_BSH is None or targets_BSH.shape[2] != self.horizon:
            found = None if targets_BSH is None else tuple(targets_BSH.shape)
            raise ValueError(f"targets must be [B, S, {self.horizon}] for the heads, not {found}")
        positions = tokens_BS.shape[1]
        after_BK = targets_BSH[:, -1, : self.horizon - 1]
        embedded_BTD = self.trunk.embed_tokens(torch.cat((tokens_BS, after_BK), dim=1))
        rope, mask = self.trunk.positions(positions, documents_BS, cached=0)
        pre_norm_BSD, post_norm_BSD = self._run_trunk(embedded_BTD[:, :positions], rope, mask)
        return post_norm_BSD, *self.heads(embedded_BTD, pre_norm_BSD, post_norm_BSD, rope, mask)

    def next_token_hidden(
        self,
        tokens_BS: Tensor,
        documents_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Head 0 alone, ``[B, S, D]``: for decoding and for a reference model's cross-entropy.

        Args:
            tokens_BS: int64, the tokens after those in ``cache``.
            documents_BS: as in ``forward``; not together with a cache.
            cache: earlier positions; the new ones are added.

        Raises:
            ValueError: the positions exceed ``max_seq_length``, or documents come with a cache.
        """
        cached = 0 if cache is None else cache.length
        rope, mask = self.trunk.positions(tokens_BS.shape[1], documents_BS, cached)
        return self._run_trunk(self.trunk.embed_tokens(tokens_BS), rope, mask, cache)[1]

    def logits(
        self,
        tokens_BS: Tensor,
        targets_BSH: Tensor | None = None,
        documents_BS: Tensor | None = None,
    ) -> Tensor:
        """All logits ``[B, S, H, V]``, for a look at a few rows. Training never calls this.

        Without ``targets_BSH`` head ``h`` has nothing to read at the last ``h`` positions of a
        row; its logits there are NaN.
        """
        known = targets_BSH is not None
        if targets_BSH is None:
            targets_BSH = tokens_BS.new_zeros(*tokens_BS.shape, self.horizon)
        hidden = self(tokens_BS, targets_BSH, documents_BS)
        logits_BSHV = torch.stack([h_BSD @ self.unembedding_VD.T for h_BSD in hidden], dim=2)
        if known:
            return logits_BSHV
        positions = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)[:, None]
        heads = torch.arange(self.horizon, device=tokens_BS.device)
        blind_SH = positions + heads >= tokens_BS.shape[1]
        return logits_BSHV.masked_fill(blind_SH[:, :, None], torch.nan)

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """Build an empty cache for the trunk, for ``max_seq_length`` positions unless told."""
        return KVCache(self.trunk_shape.num_layers, capacity or self.trunk_shape.max_seq_length)

    def training_flops_per_token(self, positions: int) -> float:
        """Floating-point operations of forward and backward per position of a row.

        Six for each parameter that takes part in a product, the unembedding once per head, and
        ``6 * positions * N * C`` for the causal attention of each block.

        Source:
            Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, with half the attention.
        """
        shape = self.trunk_shape
        blocks = shape.num_layers + self.horizon - 1
        unembedding = self.unembedding_VD.numel()
        tables = unembedding if shape.tie_embeddings else 2 * unembedding
        products = self.num_parameters - tables + self.horizon * unembedding
        attention = blocks * positions * shape.num_heads * shape.head_dim
        return 6.0 * (products + attention)

    def freeze_trunk(self) -> None:
        """Train the heads alone: the trunk, embedding and unembedding included, stays as it is.

        Its forward then keeps nothing for a backward pass, and has no dropout: the heads learn
        from the hidden states they will meet.
        """
        self.trunk_frozen = True
        self.trunk.requires_grad_(False)
        for block in self.trunk.blocks:
            block.dropout = 0.0

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade a second forward of each block for the memory of its insides."""
        self.trunk.checkpointing = enabled
        if self.heads is not None:
            self.heads.checkpointing = enabled

    def compile_trunk(self) -> None:
        """Let ``torch.compile`` fuse the trunk's blocks; names of parameters stay as they are."""
        for block in self.trunk.blocks:
            block.compile()

    def _run_trunk(
        self,
        embedded_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.trunk_frozen):
            pre_norm_BSD, post_norm_BSD = self.trunk(embedded_BSD, rope, mask, cache)
        return pre_norm_BSD, post_norm_BSD


def empty_model(trunk_shape: LlamaShape, heads_shape: HeadsShape) -> MultiTokenModel:
    """Build a float32 model on the CPU with memory for its numbers, and no numbers yet."""
    with torch.device("meta"):
        model = MultiTokenModel(trunk_shape, heads_shape)
    return model.to_empty(device="cpu")


def build_model(trunk_shape: LlamaShape, heads_shape: HeadsShape, seed: int) -> MultiTokenModel:
    """Build a float32 model on the CPU, ready to be trained from scratch.

    Gains are 1, the maps that write to the residual stream (``o_proj``, ``down_proj``) are zero,
    so that every block begins as the identity, and all else is normal with a deviation of 0.02.
    The trunk depends on the seed alone, whatever the horizon.
    """
    model = empty_model(trunk_shape, heads_shape)
    initialize_from_scratch(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def initialize_from_scratch(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter and gain of ``module`` as ``build_model`` says."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        else:
            parameter.normal_(0, INIT_STD, generator=generator)
    for gain in module.buffers():
        gain.fill_(1)
