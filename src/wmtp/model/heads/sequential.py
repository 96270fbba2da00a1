"""Sequential heads: one block per extra token ahead, each fed by the one before.

Depth ``k = 1 .. H-1`` (head ``k``) at position ``s`` joins the embedding of token ``s + k`` with
the hidden state ``g_{k-1}`` of the depth before, and predicts token ``s + 1 + k``:

    z_k(s) = eh_proj [enorm(emb(x_{s+k})) ; hnorm(g_{k-1}(s))]
    y_k    = block(z_k),  attending causally over the rows of its own depth
    n_k    = shared_head.norm(y_k),  ready for the shared unembedding
    g_k    = n_k (post_norm) or y_k (pre_norm)

``g_0`` is the trunk's hidden state after (before) its final norm. With documents packed in one
row the trunk's mask serves every depth: a row ``s`` attends to rows ``s' <= s`` of its document,
and where its target is in the document too, so is every token ``s' + k`` in between.

That is the context ``chained``, in which transformers and vLLM draft. llama.cpp keeps one cache
per depth that is filled from the trunk, so that in the context ``trunk`` row ``s`` of depth ``k``
attends to

    (x_p, g_0(p-1)) for all p <= s + 1, with g_0 = 0 before the first token of a document,
    (x_{s+j+1}, g_j(s)) for j = 1 .. k - 1, its own chain, of which the last is the row itself

each through depth ``k``'s own join. ``mix`` takes both in turns, a step each: one set of weights
that drafts well in either.

Source:
    DeepSeek-V3 (arXiv:2412.19437), section 2.2.
"""

from typing import cast, final

import torch
from torch import Tensor, nn

from wmtp.model.heads.base import ExtraHeads, HeadsShape
from wmtp.model.kv_cache import LayerCache
from wmtp.model.llama import Block, ContextRows, RMSNorm, rotary_table
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.trunk import Positions, Trunk, TrunkStates, recomputed


class SharedHead(nn.Module):
    """The norm before the shared unembedding, under the name that checkpoints give it."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps, learned=shape.final_norm_gain)


class Depth(nn.Module):
    """One head: join, block, norm."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.enorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.hnorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.eh_proj = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.block = Block(shape)
        self.shared_head = SharedHead(shape)

    def forward(
        self,
        embedded_BSD: Tensor,
        hidden_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LayerCache | None = None,
        context: tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one depth.

        Args:
            embedded_BSD: embedding of token ``s + k`` at row ``s``.
            hidden_BSD: what travels, from the depth before.
            rope: the trunk's table; every depth counts positions from its own first row, which
                rotary positions cannot tell from any other start.
            mask: the trunk's mask.
            cache: keys and values of earlier rows; the new ones are added.
            context: embeddings, hidden states and rotations of rows that are attended to as well,
                before the others, and asked nothing.

        Returns:
            ``y_k`` and ``n_k``, before and after the last norm, ``[B, S, D]`` each.
        """
        started_BSD = self._join(embedded_BSD, hidden_BSD)
        among = None if context is None else ContextRows(self._join(*context[:2]), context[2])
        output_BSD = self.block(started_BSD, rope, mask, cache, among)
        return output_BSD, self.shared_head.norm(output_BSD)

    def _join(self, embedded_BSD: Tensor, hidden_BSD: Tensor) -> Tensor:
        joined_BSE = torch.cat((self.enorm(embedded_BSD), self.hnorm(hidden_BSD)), dim=-1)
        # Under autocast the residual stream stays float32, as in the trunk.
        started_BSD: Tensor = self.eh_proj(joined_BSE).to(hidden_BSD.dtype)
        return started_BSD


@final
class SequentialHeads(ExtraHeads):
    """The chain of depths."""

    def __init__(self, trunk_shape: LlamaShape, heads_shape: HeadsShape) -> None:
        super().__init__(heads_shape)
        self._rope = rotary_table(trunk_shape)
        self._step = 0
        self.depths = nn.ModuleList(Depth(trunk_shape) for _ in range(heads_shape.horizon - 1))

    @property
    def chain(self) -> list[Depth]:
        """The depths in the order in which they feed each other."""
        return cast(list[Depth], list(self.depths))

    @property
    def blocks(self) -> list[Block]:
        """One per depth."""
        return [depth.block for depth in self.chain]

    def forward(
        self, states: TrunkStates, embedded_BTD: Tensor, positions: Positions
    ) -> tuple[Tensor, ...]:
        """Run all depths, teacher-forced."""
        mixed = self.shape.context == "mix" and self.training and self._step % 2 == 1
        if mixed or self.shape.context == "trunk":
            return self._forward_on_trunk(states, embedded_BTD, positions)
        rows = states.post_norm.shape[1]
        pre_norm_BSD, post_norm_BSD = states.pre_norm, states.post_norm
        ready: list[Tensor] = []
        for k, depth in enumerate(self.chain, start=1):
            travelling_BSD = self._travelling(pre_norm_BSD, post_norm_BSD)
            ahead_BSD = embedded_BTD[:, k : k + rows]
            inputs = (ahead_BSD, travelling_BSD, positions.rope, positions.mask)
            pre_norm_BSD, post_norm_BSD = (
                recomputed(depth, *inputs) if self.checkpointing else depth(*inputs)
            )
            ready.append(post_norm_BSD)
        return tuple(ready)

    def begin_step(self, step: int) -> None:
        """Change the context where the two are mixed: chained in even steps, and in evaluation."""
        self._step = step

    def _forward_on_trunk(
        self, states: TrunkStates, embedded_BTD: Tensor, positions: Positions
    ) -> tuple[Tensor, ...]:
        """Run all depths among rows that the trunk feeds, each one position further."""
        pre_norm_BSD, post_norm_BSD = states.pre_norm, states.post_norm
        start_BSD = self._travelling(pre_norm_BSD, post_norm_BSD)
        rows = start_BSD.shape[1]
        trunk_fed_BPD = behind_one(start_BSD, positions.documents)
        embedded = [embedded_BTD[:, : rows + 1]]
        hidden = [trunk_fed_BPD]
        cos, sin = self._rope.positions(0, rows + len(self.chain), start_BSD.device)
        places = [torch.arange(rows + 1, device=start_BSD.device)]
        ready: list[Tensor] = []
        for k, depth in enumerate(self.chain, start=1):
            ahead_BSD = embedded_BTD[:, k : k + rows]
            travelling_BSD = self._travelling(pre_norm_BSD, post_norm_BSD)
            own = torch.arange(k, k + rows, device=start_BSD.device)
            at = torch.cat(places)
            context = (torch.cat(embedded, 1), torch.cat(hidden, 1), (cos[at], sin[at]))
            mask = mask_among(k, rows, positions.documents, start_BSD.device)
            inputs = (ahead_BSD, travelling_BSD, (cos[own], sin[own]), mask, None, context)
            pre_norm_BSD, post_norm_BSD = (
                recomputed(depth, *inputs) if self.checkpointing else depth(*inputs)
            )
            ready.append(post_norm_BSD)
            if k > 1:  # a later depth attends to this row of the chain too
                embedded.append(ahead_BSD)
                hidden.append(travelling_BSD)
                places.append(own)
        return tuple(ready)

    def _travelling(self, pre_norm_BSD: Tensor, post_norm_BSD: Tensor) -> Tensor:
        return post_norm_BSD if self.shape.hidden == "post_norm" else pre_norm_BSD

    @torch.no_grad()
    def start_on(self, trunk: Trunk) -> None:
        """Begin as the trunk's own prediction with half its confidence.

        The blocks are as from scratch, whose output is zero. ``eh_proj = [0 | diag(rms(g) / g)]``
        undoes the gain ``g`` of the trunk's final norm that the travelling state carries
        (``pre_norm``: ``[0 | I]``), and the last norm has the gain ``g / 2``: at full confidence
        in the wrong token the loss starts four nats higher. Copying the trunk's last layer
        instead, at full confidence, was worse: its activations are made for a much larger
        residual stream, and the first steps of AdamW multiply the loss. Measured on SmolLM2-135M
        with a frozen trunk, MBPP, 12 steps of 512 tokens, cross-entropy of heads 1-3 at the last:
        5.2 5.5 5.7, against 7.8 8.9 9.3 for a copy with zeroed outputs that repeats the trunk
        exactly and 9.7 10.4 9.0 for a full copy.
        """
        gain_D = trunk.final_gain_D()
        undone_D = torch.ones_like(gain_D)
        if self.shape.hidden == "post_norm":
            # where the gain is 0 nothing arrives, and nothing can be undone
            undone_D = torch.where(gain_D == 0, 0, gain_D.square().mean().sqrt() / gain_D)
        for depth in self.chain:
            depth.eh_proj.weight.zero_()
            depth.eh_proj.weight[:, len(gain_D) :].copy_(undone_D.diag())
            depth.shared_head.norm.start_with(gain_D / 2)


def behind_one(hidden_BSD: Tensor, documents_BS: Tensor | None) -> Tensor:
    """The state before each of ``S + 1`` tokens, zero before the first of a document."""
    before_BPD = torch.nn.functional.pad(hidden_BSD, (0, 0, 1, 0))
    if documents_BS is None:
        return before_BPD
    begins_BS = documents_BS[:, 1:] != documents_BS[:, :-1]
    begins_BP = torch.nn.functional.pad(begins_BS, (1, 1))
    return before_BPD.masked_fill(begins_BP.unsqueeze(2), 0)


def mask_among(k: int, rows: int, documents_BS: Tensor | None, device: torch.device) -> Tensor:
    """What the rows of depth ``k`` may see, in the context ``trunk``.

    Returns:
        bool ``[S, C]`` or ``[B, 1, S, C]``: ``S + 1`` rows fed by the trunk, then ``S`` for each
        earlier step of the chain from the second on, then the depth's own.
    """
    trunk_fed_SP = torch.ones(rows, rows + 1, dtype=torch.bool, device=device)
    # depth 1 is itself the row fed with the trunk's last state
    trunk_fed_SP = trunk_fed_SP.tril(0 if k == 1 else 1)
    itself_SS = torch.eye(rows, dtype=torch.bool, device=device)
    chain = [itself_SS] * max(1, k - 1)
    if documents_BS is None:
        return torch.cat((trunk_fed_SP, *chain), dim=1)
    # the token behind the row is of the last one's document wherever it counts
    of_token_BP = torch.cat((documents_BS, documents_BS[:, -1:]), dim=1)
    same_BSP = documents_BS[:, :, None] == of_token_BP[:, None, :]
    parts = [trunk_fed_SP & same_BSP, *(one.expand(len(same_BSP), -1, -1) for one in chain)]
    return torch.cat(parts, dim=2).unsqueeze(1)
