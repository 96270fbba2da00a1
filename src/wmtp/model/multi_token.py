"""The model that is trained: a trunk, and heads that look further ahead."""

from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from wmtp.errors import DeviceError
from wmtp.model.heads import HeadsShape, build_heads
from wmtp.model.kv_cache import Cache
from wmtp.model.llama import LlamaTrunk
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.trunk import Positions, Trunk, TrunkStates

INIT_STD = 0.02


class MultiTokenModel(nn.Module):
    """A trunk with ``H - 1`` heads beside its own; head ``h`` at ``s`` predicts ``s + 1 + h``.

    Sequential head ``h`` at position ``s`` sees tokens up to ``s + h``, all others up to ``s``.
    """

    def __init__(self, trunk: Trunk, heads_shape: HeadsShape) -> None:
        super().__init__()
        self.heads_shape = heads_shape
        self.trunk = trunk
        self.heads = build_heads(trunk.shape, heads_shape)
        self.trunk_frozen = False
        self.product_with_unembedding: Callable[[Tensor], Tensor] | None = None

    @property
    def trunk_shape(self) -> LlamaShape:
        """Sizes of the trunk, and the shape of a head's block."""
        return self.trunk.shape

    @property
    def horizon(self) -> int:
        """H, how many tokens are predicted at once."""
        return self.heads_shape.horizon

    @property
    def unembedding_VD(self) -> nn.Parameter:
        """Head 0's matrix; the embedding itself where the two are tied."""
        return self.trunk.unembedding_VD

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of head 0, and of heads without a matrix of their own, ``[..., D]`` to ``V``."""
        if self.product_with_unembedding is not None:
            return self.product_with_unembedding(hidden)
        return hidden @ self.unembedding_VD.T

    @property
    def unembeddings(self) -> tuple[nn.Parameter, ...]:
        """One matrix ``[V, D]`` for all heads, or H: one for each."""
        shared_VD = self.trunk.unembedding_VD
        return (shared_VD,) if self.heads is None else self.heads.unembeddings(shared_VD)

    @property
    def blocks(self) -> list[nn.Module]:
        """Every transformer block, of the trunk and of the heads."""
        of_heads = [] if self.heads is None else self.heads.blocks
        return [*self.trunk.blocks, *of_heads]

    @property
    def num_parameters(self) -> int:
        """How many numbers the optimizer could move, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        return self.trunk.embedding_VD.device

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BSH: Tensor | None = None,
        documents_BS: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Hidden states of every head, ready for ``unembeddings``.

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
            # not next_token_hidden: of a model in slices that is another way in, which gathers
            return (self._head_0_hidden(tokens_BS, documents_BS, None),)
        if targets_BSH is None or targets_BSH.shape[2] != self.horizon:
            found = None if targets_BSH is None else tuple(targets_BSH.shape)
            raise ValueError(f"targets must be [B, S, {self.horizon}] for the heads, not {found}")
        positions = tokens_BS.shape[1]
        after_BK = targets_BSH[:, -1, : self.horizon - 1]
        embedded_BTD = self.trunk.embed(torch.cat((tokens_BS, after_BK), dim=1))
        places = self.trunk.positions(positions, documents_BS, cached=0)
        states = self._run_trunk(embedded_BTD[:, :positions], places)
        return states.post_norm, *self.heads(states, embedded_BTD, places)

    def next_token_hidden(
        self,
        tokens_BS: Tensor,
        documents_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Head 0 alone, ``[B, S, D]``: for decoding and for a reference model's cross-entropy.

        Args:
            tokens_BS: int64, the tokens after those in ``cache``.
            documents_BS: as in ``forward``; not together with a cache.
            cache: earlier positions; the new ones are added.

        Raises:
            ValueError: the positions exceed ``max_seq_length``, or documents come with a cache.
        """
        return self._head_0_hidden(tokens_BS, documents_BS, cache)

    def _head_0_hidden(
        self, tokens_BS: Tensor, documents_BS: Tensor | None, cache: Cache | None
    ) -> Tensor:
        cached = 0 if cache is None else cache.length
        places = self.trunk.positions(tokens_BS.shape[1], documents_BS, cached)
        return self._run_trunk(self.trunk.embed(tokens_BS), places, cache).post_norm

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
        matrices = self.unembeddings * (self.horizon if len(self.unembeddings) == 1 else 1)
        logits_BSHV = torch.stack(
            [h_BSD @ W_VD.T for h_BSD, W_VD in zip(hidden, matrices, strict=True)], dim=2
        )
        if known:
            return logits_BSHV
        positions = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)[:, None]
        heads = torch.arange(self.horizon, device=tokens_BS.device)
        blind_SH = positions + heads >= tokens_BS.shape[1]
        return logits_BSHV.masked_fill(blind_SH[:, :, None], torch.nan)

    def new_cache(self, capacity: int | None = None) -> Cache:
        """Build an empty cache for the trunk, for ``max_seq_length`` positions unless told."""
        return self.trunk.new_cache(capacity or self.trunk_shape.max_seq_length)

    def training_flops_per_token(self, positions: int) -> float:
        """Floating-point operations of forward and backward per position of a row.

        Six for each parameter that takes part in a product, the unembedding once per head, and
        ``6 * positions * N * C`` for the causal attention of each block.

        Source:
            Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, with half the attention.
        """
        shape = self.trunk_shape
        blocks = shape.num_layers + (0 if self.heads is None else len(self.heads.blocks))
        tables = {id(matrix): matrix.numel() for matrix in self.unembeddings}
        tables[id(self.trunk.embedding_VD)] = self.trunk.embedding_VD.numel()
        unembeddings = self.horizon * self.unembedding_VD.numel()
        products = self.num_parameters - sum(tables.values()) + unembeddings
        attention = blocks * positions * shape.num_heads * shape.head_dim
        return 6.0 * (products + attention)

    def freeze_trunk(self) -> None:
        """Train the heads alone: the trunk, embedding and unembedding included, stays as it is.

        Its forward then keeps nothing for a backward pass, and has no dropout: the heads learn
        from the hidden states they will meet.
        """
        self.trunk_frozen = True
        self.trunk.requires_grad_(False)
        self.trunk.set_dropout(0.0)

    def begin_step(self, step: int) -> None:
        """Know the number of the training step that follows, from 0 on."""
        if self.heads is not None:
            self.heads.begin_step(step)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade a second forward of each block for the memory of its insides."""
        self.trunk.set_checkpointing(enabled)
        if self.heads is not None:
            self.heads.checkpointing = enabled

    def set_tiled_attention(self, enabled: bool) -> None:
        """Make the scores of attention in tiles, for a device without a fused kernel."""
        self.trunk.set_tiled_attention(enabled)
        for block in [] if self.heads is None else self.heads.blocks:
            block.self_attn.tiled = enabled

    def compile_trunk(self) -> None:
        """Let ``torch.compile`` fuse the trunk's blocks; names of parameters stay as they are."""
        self.trunk.compile_blocks()

    def set_dropout(self, probability: float) -> None:
        """Drop out with this probability in the trunk and the heads while training."""
        self.trunk.set_dropout(probability)
        for block in [] if self.heads is None else self.heads.blocks:
            block.dropout = probability

    def _run_trunk(
        self, embedded_BSD: Tensor, positions: Positions, cache: Cache | None = None
    ) -> TrunkStates:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.trunk_frozen):
            states: TrunkStates = self.trunk(embedded_BSD, positions, cache)
        return states


def empty_model(trunk_shape: LlamaShape, heads_shape: HeadsShape) -> MultiTokenModel:
    """Build a float32 llama model on the CPU with memory for its numbers, and no numbers yet.

    Raises:
        DeviceError: the machine has not that much memory.
    """
    with torch.device("meta"):
        model = MultiTokenModel(LlamaTrunk(trunk_shape), heads_shape)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    present = psutil.virtual_memory().total
    if needed > present:  # the system may grant it, and end the process when it is used
        raise DeviceError(
            f"a model of {model.num_parameters:,} parameters takes {needed / 1e9:,.1f} GB of "
            f"memory, but this machine has {present / 1e9:,.1f} GB. Choose a smaller one."
        )
    return model.to_empty(device="cpu")


def build_model(trunk_shape: LlamaShape, heads_shape: HeadsShape, seed: int) -> MultiTokenModel:
    """Build a float32 llama model on the CPU, ready to be trained from scratch.

    Gains are 1, the maps that write to the residual stream (``o_proj``, ``down_proj``) are zero,
    so that every block begins as the identity, and all else is normal with a deviation of 0.02.
    The trunk depends on the seed alone, whatever the horizon.
    """
    model = empty_model(trunk_shape, heads_shape)
    initialize_from_scratch(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def without_final_gain(model: MultiTokenModel) -> MultiTokenModel:
    """The same llama trunk with its last norm's gain moved into the unembedding, and new heads.

    ``W (g * x) = (W diag(g)) x``: the trunk computes what it did, up to rounding. An unembedding
    that was tied to the embedding becomes a matrix of its own.
    """
    trunk = model.trunk
    assert isinstance(trunk, LlamaTrunk)
    trunk.absorb_final_gain()
    with torch.device("meta"):
        changed = MultiTokenModel(trunk, model.heads_shape)
    if changed.heads is not None:
        changed.heads.to_empty(device=trunk.embedding_VD.device)
    return changed


def attach_heads(trunk: Trunk, heads_shape: HeadsShape, seed: int) -> MultiTokenModel:
    """Put new heads beside a foreign trunk; their blocks are initialized as ``build_model`` says.

    Raises:
        ValueError: the heads want a state that such a trunk does not show.
    """
    if heads_shape.hidden == "pre_norm":
        raise ValueError("a foreign trunk shows no pre_norm state")
    with torch.random.fork_rng(devices=[]):  # modules draw numbers that are not kept
        model = MultiTokenModel(trunk, heads_shape)
    if model.heads is not None:
        initialize_from_scratch(model.heads, torch.Generator().manual_seed(seed))
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
