"""Any dense causal model of ``transformers`` as a trunk, run through its own code.

Nothing is assumed about an architecture that is not tried on a few tokens first (``probe``): that
the unembedding alone gives the logits, that no position sees the future, that documents packed
into one row stay apart. Code that a model directory brings along is never run.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging as transformers_logging

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.kv_cache import Cache
from wmtp.model.llama import rotary_table
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, attach_heads
from wmtp.model.trunk import Positions, Trunk, TrunkStates

PROBE_TOKENS = 6
PROBE_TOLERANCE = 1e-3
"""Largest difference relative to the largest value; float32 rounding stays far below it."""

UNLIMITED_POSITIONS = 1 << 20
"""For architectures whose config names no longest row."""

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
DROPOUTS = ("dropout", "attention_dropout", "attn_dropout", "activation_dropout", "hidden_dropout")
"""Modules that call dropout as a function keep its probability in one of these."""


@final
class HfCache(Cache):
    """Keys and values as ``transformers`` keeps them."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.inner = DynamicCache(config=config)

    @property
    def length(self) -> int:
        """How many positions have been read."""
        return int(self.inner.get_seq_length())

    def crop(self, length: int) -> None:
        """Forget every position from ``length`` on.

        Raises:
            ValueError: fewer positions are held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} positions to {length}")
        if length < self.length:
            self.inner.crop(length - self.length)  # a negative number says how many to drop


@final
class HfTrunk(Trunk):
    """A causal language model of ``transformers``.

    It shows its output after the final norm only, so that heads read that state wherever a trunk
    of our own would show an earlier one.

    Attributes:
        network: the model, with its unembedding.
        hidden_rms: root mean square of its output on the probe's tokens; 1 before ``probe``.
    """

    def __init__(self, network: PreTrainedModel, shape: LlamaShape) -> None:
        super().__init__(shape)
        self.network = network
        self.rope = rotary_table(shape)
        self.hidden_rms = 1.0
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self._takes_bool_masks = network.config._attn_implementation == "sdpa"
        self.keeps_documents_apart = False

    @property
    def body(self) -> PreTrainedModel:
        """The model without its unembedding."""
        return cast(PreTrainedModel, self.network.base_model)

    @property
    def unembedding_VD(self) -> nn.Parameter:
        """The matrix that turns the output into logits."""
        return cast(nn.Parameter, self.network.get_output_embeddings().weight)

    @property
    def embedding_VD(self) -> nn.Parameter:
        """The matrix whose rows are the tokens' embeddings."""
        return cast(nn.Parameter, self.network.get_input_embeddings().weight)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The tokens' embeddings, ``[B, T, D]``, without positions."""
        return cast(Tensor, self.network.get_input_embeddings()(tokens_BT))

    def forward(
        self, embedded_BSD: Tensor, positions: Positions, cache: Cache | None = None
    ) -> TrunkStates:
        """Run the model over embedded tokens.

        Args:
            embedded_BSD: embeddings of the new tokens.
            positions: where they stand.
            cache: an ``HfCache``; the new positions are added.

        Raises:
            ValueError: documents are given, and this architecture mixes them.
        """
        assert cache is None or isinstance(cache, HfCache)
        if positions.documents is not None and not self.keeps_documents_apart:
            raise ValueError("this architecture cannot keep packed documents apart")
        hidden_BSD = self._run(embedded_BSD, positions, cache)
        return TrunkStates(hidden_BSD, hidden_BSD, hidden_BSD)

    def _run(self, embedded_BSD: Tensor, positions: Positions, cache: HfCache | None) -> Tensor:
        inputs: dict[str, Any] = {"inputs_embeds": embedded_BSD, "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache.inner
        if positions.documents is not None:
            mask = positions.mask
            assert mask is not None
            if not self._takes_bool_masks:
                lowest = torch.finfo(embedded_BSD.dtype).min
                mask = torch.zeros_like(mask, dtype=embedded_BSD.dtype).masked_fill(~mask, lowest)
            inputs["attention_mask"] = mask
            if self._takes_positions:
                inputs["position_ids"] = positions_in_document(positions.documents)
        hidden_BSD: Tensor = self.body(**inputs).last_hidden_state
        return hidden_BSD.to(embedded_BSD.dtype)  # under autocast the last product may be bf16

    def new_cache(self, capacity: int) -> HfCache:
        """An empty cache; it grows as it is filled, so that the capacity does not matter."""
        return HfCache(self.network.config)

    def set_dropout(self, probability: float) -> None:
        """Drop out with this probability wherever the architecture has dropout at all."""
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
                continue
            for name in DROPOUTS:
                if isinstance(vars(module).get(name), float):
                    setattr(module, name, probability)
            if "layerdrop" in vars(module):  # whole layers left out: heads would meet other states
                module.layerdrop = 0.0

    def set_checkpointing(self, enabled: bool) -> None:
        """Let the model recompute its blocks in the backward pass.

        Raises:
            CheckpointError: the architecture cannot.
        """
        before, self.checkpointing = self.checkpointing, enabled
        if before and not enabled:
            self.network.activation_checkpointing_disable()
        if not enabled or before:
            return
        if not self.network.supports_gradient_checkpointing:
            raise CheckpointError(
                f"train.gradient_checkpointing is true, but {type(self.network).__name__} has "
                "none. Set it to false."
            )
        self.network.activation_checkpointing_enable({"use_reentrant": False})

    def compile_blocks(self) -> None:
        """Let ``torch.compile`` fuse the model; names of parameters stay as they are."""
        self.body.compile()

    def final_gain_D(self) -> Tensor:
        """The one number that is known of the last norm: how large its output is."""
        return torch.full((self.shape.hidden_size,), self.hidden_rms)

    @torch.no_grad()
    def probe(self, where: str) -> None:
        """Try on a few tokens what is asked of every trunk.

        Args:
            where: the model's name for messages.

        Raises:
            CheckpointError: its logits are not its output times its unembedding, or a position
                sees the future.
        """
        was_training = self.network.training
        self.network.eval()
        tokens_BS = torch.arange(1, PROBE_TOKENS + 1)[None] * 7 % self.shape.vocab_size
        hidden_BSD = self._run(self.embed(tokens_BS), self.positions(PROBE_TOKENS, None, 0), None)
        self.hidden_rms = hidden_BSD.square().mean().sqrt().item()

        logits_BSV = self.network(input_ids=tokens_BS, use_cache=False).logits
        if not _agree(hidden_BSD @ self.unembedding_VD.T, logits_BSV):
            raise CheckpointError(
                f"{where}: the logits of {type(self.network).__name__} are not its output times "
                "one matrix (it scales, caps or shifts them), which the loss needs."
            )
        changed_BS = tokens_BS.clone()
        changed_BS[:, -1] = (changed_BS[:, -1] + 1) % self.shape.vocab_size
        other_BSD = self._run(self.embed(changed_BS), self.positions(PROBE_TOKENS, None, 0), None)
        if not _agree(other_BSD[:, :-1], hidden_BSD[:, :-1]):
            raise CheckpointError(
                f"{where}: {type(self.network).__name__} lets a position see later tokens, so it "
                "is no causal language model."
            )
        self.keeps_documents_apart = self._keeps_apart(tokens_BS)
        self.network.train(was_training)

    def _keeps_apart(self, tokens_BS: Tensor) -> bool:
        """Whether two documents in one row give what each gives alone."""
        half = PROBE_TOKENS // 2
        documents_BS = (torch.arange(PROBE_TOKENS)[None] >= half).int()
        packed = self.positions(PROBE_TOKENS, documents_BS, 0)
        try:
            together_BSD = self._run(self.embed(tokens_BS), packed, None)
        except (TypeError, ValueError, RuntimeError, IndexError):  # it takes no such mask
            return False
        alone = self.positions(half, None, 0)
        parts = [
            self._run(self.embed(part), alone, None)
            for part in (tokens_BS[:, :half], tokens_BS[:, half:])
        ]
        return _agree(together_BSD, torch.cat(parts, 1))


def positions_in_document(documents_BS: Tensor) -> Tensor:
    """How many tokens of its own document stand before each token in the row, int64.

    Example:
        >>> positions_in_document(torch.tensor([[4, 4, 4, 5, 5]]))
        tensor([[0, 1, 2, 0, 1]])
    """
    place_1S = torch.arange(documents_BS.shape[1], device=documents_BS.device).unsqueeze(0)
    begins_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    begins_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    start_BS = torch.where(begins_BS, place_1S, 0).cummax(dim=1).values
    return place_1S - start_BS


def hf_shape(config: PretrainedConfig, where: str) -> LlamaShape:
    """The sizes of an architecture, as the heads' blocks and the decoder need them.

    Raises:
        CheckpointError: it lacks one of them, or is a mixture of experts.
    """
    given = {
        key: vars(config).get(config.attribute_map.get(key, key))
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    lacking = [key for key, value in given.items() if not isinstance(value, int)]
    if lacking:
        raise CheckpointError(
            f"{where}: model_type '{config.model_type}' has no single {' and '.join(lacking)}; "
            "only dense decoders can be trunks."
        )
    lengths = [vars(config).get(config.attribute_map.get(key, key)) for key in LENGTH_KEYS]
    width, heads = given["hidden_size"], given["num_attention_heads"]
    try:
        return LlamaShape(
            vocab_size=given["vocab_size"],
            hidden_size=width,
            intermediate_size=-(-width // 24) * 64,
            num_layers=given["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            max_seq_length=next((n for n in lengths if isinstance(n, int)), UNLIMITED_POSITIONS),
            rope_theta=10000.0,
            norm_eps=1e-5,
            tie_embeddings=bool(config.tie_word_embeddings),
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}.") from error


def hf_config_from_scratch(
    architecture: str,
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_seq_length: int,
    tie_embeddings: bool,
) -> PretrainedConfig:
    """The config of an architecture of ``transformers`` at a chosen size.

    Raises:
        CheckpointError: there is no such architecture, or it has no such sizes.
    """
    try:
        with quiet_transformers():
            config = AutoConfig.for_model(
                architecture,
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                max_position_embeddings=max_seq_length,
                tie_word_embeddings=tie_embeddings,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
    except ValueError as error:
        raise CheckpointError(
            f"model.architecture is '{architecture}', which transformers cannot build at these "
            f"sizes ({str(error).splitlines()[0][:100]}). Use for instance gpt2, gpt_neox or opt."
        ) from error
    return cast(PretrainedConfig, config)


def build_hf_trunk(config: PretrainedConfig, seed: int) -> HfTrunk:
    """A trunk from scratch, float32 on the CPU, initialized by the architecture's own rule.

    Raises:
        CheckpointError: transformers has no causal model of that type, or ``probe`` refuses it.
    """
    where = f"model_type '{config.model_type}'"
    shape = hf_shape(config, where)
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{where}: transformers cannot build a causal language model of these sizes "
            f"({str(error).splitlines()[0][:100]})."
        ) from error
    trunk = HfTrunk(network, shape)
    with quiet_transformers():
        trunk.probe(where)
    return trunk


def build_hf_model(
    architecture: str,
    sizes: LlamaShape,
    heads_shape: HeadsShape,
    seed: int,
) -> MultiTokenModel:
    """Build an architecture of ``transformers`` with heads, ready to be trained from scratch.

    Raises:
        CheckpointError: transformers cannot build it, or it cannot be a trunk.
    """
    config = hf_config_from_scratch(
        architecture,
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        max_seq_length=sizes.max_seq_length,
        tie_embeddings=sizes.tie_embeddings,
    )
    model = attach_heads(build_hf_trunk(config, seed), heads_shape, seed)
    model.set_dropout(sizes.dropout)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep ``transformers`` from telling the user what we check or tell ourselves."""
    logger = logging.getLogger("transformers")
    before, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            transformers_logging.enable_progress_bar()


def _agree(one: Tensor, other: Tensor) -> bool:
    scale = other.abs().max().clamp(min=1e-6)
    return bool((one - other).abs().max() <= PROBE_TOLERANCE * scale)
