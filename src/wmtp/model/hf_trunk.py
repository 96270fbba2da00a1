"""Any dense causal model of ``transformers`` as a trunk, run through its own code.

Nothing is assumed about an architecture that is not tried on a few tokens first (``probe``): that
the unembedding alone gives the logits, that no position sees the future, that documents packed
into one row stay apart. Code that a model directory brings along is never run.
"""

import inspect
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_attention import use_tiled_attention
from wmtp.model.kv_cache import Cache
from wmtp.model.llama import rotary_table
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, attach_heads
from wmtp.model.transformers_calls import quiet_transformers, told_plainly
from wmtp.model.trunk import Positions, Trunk, TrunkStates

PROBE_TOKENS = 6
PROBE_TOLERANCE = 1e-3
"""Largest difference relative to the largest value; float32 rounding stays far below it."""

ROUGH_STD = 0.2
"""Of the numbers on which an untrained architecture is tried."""

UNLIMITED_POSITIONS = 1 << 20
"""For architectures whose config names no longest row."""

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
DROPOUT_PARTS = ("dropout", "pdrop", "drop_prob")
"""A number with one of these in its name is the probability of a dropout that is a function."""

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
WINDOW_KEYS = ("sliding_window", "attention_window_size", "attention_chunk_size")


@final
class HfCache(Cache):
    """Keys and values as ``transformers`` keeps them."""

    def __init__(self) -> None:
        # not told of the config: caches of sliding windows forget what ``crop`` may go back to
        self.inner = DynamicCache()

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
        reads_on: it can go on from a cache; False before ``probe``.
    """

    def __init__(self, network: PreTrainedModel, shape: LlamaShape) -> None:
        super().__init__(shape)
        self.network = network
        self.rope = rotary_table(shape)
        self.hidden_rms = 1.0
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self._takes_bool_masks = network.config._attn_implementation == "sdpa"
        self.longest_packed_row = 0
        self.reads_on = False

    @property
    def body(self) -> PreTrainedModel:
        """The model without its unembedding."""
        return cast(PreTrainedModel, self.network.base_model)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, by the class names that the architecture gives as not to be parted."""
        names = self.network._no_split_modules or ()
        return [module for module in self.body.modules() if type(module).__name__ in names]

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
            ValueError: documents are given, and this architecture mixes them in such a row.
        """
        assert cache is None or isinstance(cache, HfCache)
        if positions.documents is not None and embedded_BSD.shape[1] > self.longest_packed_row:
            raise ValueError("this architecture cannot keep documents of such a row apart")
        hidden_BSD = self._run(embedded_BSD, positions, cache)
        return TrunkStates(hidden_BSD, hidden_BSD, hidden_BSD)

    def _run(self, embedded_BSD: Tensor, positions: Positions, cache: HfCache | None) -> Tensor:
        inputs: dict[str, Any] = {"inputs_embeds": embedded_BSD, "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache.inner
        if positions.documents is not None:
            mask = positions.mask
            assert mask is not None
            if self._takes_positions:  # what a token sees are the tokens before it, and itself
                inputs["position_ids"] = mask[:, 0].sum(-1) - 1
            if not self._takes_bool_masks:
                lowest = torch.finfo(embedded_BSD.dtype).min
                mask = torch.zeros_like(mask, dtype=embedded_BSD.dtype).masked_fill(~mask, lowest)
            inputs["attention_mask"] = mask
        hidden_BSD: Tensor = self.body(**inputs).last_hidden_state
        return hidden_BSD.to(embedded_BSD.dtype)  # under autocast the last product may be bf16

    def new_cache(self, capacity: int) -> HfCache:
        """An empty cache; it grows as it is filled, so that the capacity does not matter.

        Raises:
            CheckpointError: the architecture does not go on from such a cache.
        """
        if not self.reads_on:
            raise CheckpointError(
                f"{type(self.network).__name__} cannot decode: it does not go on from keys and "
                "values that are kept. It can be trained and evaluated."
            )
        return HfCache()

    def set_dropout(self, probability: float) -> None:
        """Drop out with this probability wherever the architecture has dropout at all."""
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
                continue
            _set_dropouts(module, probability)
            if "layerdrop" in vars(module):  # whole layers left out: heads would meet other states
                module.layerdrop = 0.0
        _set_dropouts(self.network.config, probability)  # some read it there at every call

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

    def set_tiled_attention(self, enabled: bool) -> None:
        """Let the model make the scores of attention in tiles, where its code can."""
        self.attention_is_lean = use_tiled_attention(self.network, enabled)

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
            CheckpointError: it fails, its states are not as wide as the config says, its logits
                are not its output times its unembedding, or a position sees the future.
        """
        was_training = self.network.training
        self.network.eval()
        with told_plainly(f"{where}: {type(self.network).__name__} cannot be run as a trunk"):
            self._probe(where)
        self.network.train(was_training)

    def _probe(self, where: str) -> None:
        name = type(self.network).__name__
        tokens_BS = torch.arange(1, PROBE_TOKENS + 1)[None] * 7 % self.shape.vocab_size
        embedded_BSD = self.embed(tokens_BS)
        hidden_BSD = self._run(embedded_BSD, self.positions(PROBE_TOKENS, None, 0), None)
        widths = {embedded_BSD.shape[-1], hidden_BSD.shape[-1], self.shape.hidden_size}
        if len(widths) > 1:
            raise CheckpointError(
                f"{where}: the embeddings and the output of {name} are {embedded_BSD.shape[-1]} "
                f"and {hidden_BSD.shape[-1]} wide beside a hidden_size of "
                f"{self.shape.hidden_size}; the heads need one width."
            )
        self.hidden_rms = hidden_BSD.square().mean().sqrt().item()

        logits_BSV = self.network(input_ids=tokens_BS, use_cache=False).logits
        last = self.network.get_output_embeddings()
        # a bias that is still 0 shows in no logit, but nothing would ever move it
        biased = isinstance(last, nn.Linear) and last.bias is not None
        if biased or not _agree(hidden_BSD @ self.unembedding_VD.T, logits_BSV):
            raise CheckpointError(
                f"{where}: the logits of {name} are not its output times "
                "one matrix (it scales, caps or shifts them), which the loss needs."
            )
        changed_BS = tokens_BS.clone()
        changed_BS[:, -1] = (changed_BS[:, -1] + 1) % self.shape.vocab_size
        other_BSD = self._run(self.embed(changed_BS), self.positions(PROBE_TOKENS, None, 0), None)
        if not _agree(other_BSD[:, :-1], hidden_BSD[:, :-1]):
            raise CheckpointError(
                f"{where}: {name} lets a position see later tokens, so it "
                "is no causal language model."
            )
        if self._keeps_apart(tokens_BS):
            # given a mask for its documents, a model leaves out its own mask for the window
            window = _shortest_window(self.network.config)
            longest = self.shape.max_seq_length
            self.longest_packed_row = longest if window is None else min(longest, window)
        self.reads_on = self._reads_on(tokens_BS, hidden_BSD)

    def _keeps_apart(self, tokens_BS: Tensor) -> bool:
        """Whether two documents in one row give what each gives alone."""
        half = PROBE_TOKENS // 2
        documents_BS = (torch.arange(PROBE_TOKENS)[None] >= half).int()
        packed = self.positions(PROBE_TOKENS, documents_BS, 0)
        try:
            together_BSD = self._run(self.embed(tokens_BS), packed, None)
        except Exception:  # foreign code that takes no such mask may fail in any way
            return False
        alone = self.positions(half, None, 0)
        parts = [
            self._run(self.embed(part), alone, None)
            for part in (tokens_BS[:, :half], tokens_BS[:, half:])
        ]
        return _agree(together_BSD, torch.cat(parts, 1))

    def _reads_on(self, tokens_BS: Tensor, hidden_BSD: Tensor) -> bool:
        """Whether reading in two parts gives what reading at once gives."""
        half, cache = PROBE_TOKENS // 2, HfCache()
        try:
            for part in (tokens_BS[:, :half], tokens_BS[:, half:]):
                places = self.positions(half, None, cache.length)
                later_BSD = self._run(self.embed(part), places, cache)
        except Exception:  # foreign code that keeps another kind of cache may fail in any way
            return False
        return cache.length == PROBE_TOKENS and _agree(later_BSD, hidden_BSD[:, half:])


def _set_dropouts(holder: object, probability: float) -> None:
    """Set each number of an object that is, by its name, a probability of dropout."""
    for name, value in list(vars(holder).items()):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and any(part in name for part in DROPOUT_PARTS):
            setattr(holder, name, probability)


def _shortest_window(config: PretrainedConfig) -> int | None:
    """How far back the layers look that do not look at everything; None if all do."""
    found = vars(config)
    kinds = found.get("layer_types")
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    windows = [found.get(key) for key in WINDOW_KEYS]
    return min((n for n in windows if isinstance(n, int) and n > 0), default=None)


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
    for key, value in given.items():
        if value < 1:
            raise CheckpointError(f"{where}: {key} is {value}; it must be at least 1.")
    experts = [key for key in EXPERT_KEYS if (vars(config).get(key) or 0) > 1]
    if experts or config.is_encoder_decoder:
        raise CheckpointError(
            f"{where}: '{config.model_type}' is "
            + (f"a mixture of experts ({experts[0]})" if experts else "an encoder and decoder")
            + "; only dense decoders can be trunks."
        )
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
            max_seq_length=_longest_row_named(config),
            rope_theta=10000.0,
            norm_eps=1e-5,
            tie_embeddings=bool(config.tie_word_embeddings),
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}.") from error


def _longest_row_named(config: PretrainedConfig) -> int:
    found = (vars(config).get(config.attribute_map.get(key, key)) for key in LENGTH_KEYS)
    return next((n for n in found if isinstance(n, int)), UNLIMITED_POSITIONS)


def longest_row_of(network: PreTrainedModel) -> int:
    """Tokens that a model of ``transformers``, of any kind, can read at once.

    RoBERTa and its kin count positions from the one after their padding token's.
    """
    counted_from_padding = [
        table.num_embeddings - table.padding_idx - 1
        for name, table in network.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(table, nn.Embedding)
        and table.padding_idx is not None
    ]
    return min([_longest_row_named(network.config), *counted_from_padding])


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
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
    }
    with (
        quiet_transformers(),
        told_plainly(
            f"model.architecture is '{architecture}', which transformers cannot build so",
            "Use for instance gpt2, gpt_neox or opt.",
        ),
    ):
        known = AutoConfig.for_model(architecture)
        lacking = [k for k in sizes if known.attribute_map.get(k, k) not in vars(known)]
        if lacking:
            raise ValueError(f"it has no {' and no '.join(lacking)}")
        if isinstance(vars(known).get("num_key_value_heads"), int):
            sizes["num_key_value_heads"] = num_heads
        config = AutoConfig.for_model(
            architecture,
            vocab_size=vocab_size,
            **sizes,
            max_position_embeddings=max_seq_length,
            tie_word_embeddings=tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    return cast(PretrainedConfig, config)


def build_hf_trunk(config: PretrainedConfig, seed: int) -> HfTrunk:
    """A trunk from scratch, float32 on the CPU, initialized by the architecture's own rule.

    Raises:
        CheckpointError: transformers has no causal model of that type, or ``probe`` refuses it.
    """
    where = f"model_type '{config.model_type}'"
    shape = hf_shape(config, where)

    def build() -> HfTrunk:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        return HfTrunk(network, shape)

    with told_plainly(f"{where}: transformers cannot build a causal language model of these sizes"):
        rough = build().eval()
        trunk = build()
    _roughen(rough, torch.Generator().manual_seed(seed))
    for one in (rough, trunk):
        with quiet_transformers():
            one.probe(where)
    _refuse_idle_parameters(rough, where)
    trunk.longest_packed_row, trunk.reads_on = rough.longest_packed_row, rough.reads_on
    return trunk


@torch.no_grad()
def _roughen(trunk: HfTrunk, generator: torch.Generator) -> None:
    """Give a trunk numbers at which nothing is too small to be seen by ``probe``.

    As built, blocks hardly add to what passes through them, logits are too small to be capped,
    and biases are 0.
    """
    for name, parameter in trunk.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, ROUGH_STD, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0, ROUGH_STD / 2, generator=generator)
        else:
            parameter.uniform_(0.7, 1.3, generator=generator)


def _refuse_idle_parameters(trunk: HfTrunk, where: str) -> None:
    """Refuse an architecture with parts that no loss would ever reach.

    Raises:
        CheckpointError: names one.
    """
    tokens_BS = torch.arange(PROBE_TOKENS)[None] % trunk.shape.vocab_size
    places = trunk.positions(PROBE_TOKENS, None, 0)
    with torch.enable_grad():
        trunk(trunk.embed(tokens_BS), places).post_norm.sum().backward()
    idle = [
        name
        for name, parameter in trunk.network.named_parameters()
        if parameter.grad is None and parameter is not trunk.unembedding_VD
    ]
    if idle:
        raise CheckpointError(
            f"{where}: {type(trunk.network).__name__} has parts that its output does not depend "
            f"on ({idle[0]}), so it is not only a decoder."
        )


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


def _agree(one: Tensor, other: Tensor) -> bool:
    scale = other.abs().max().clamp(min=1e-6)
    return bool((one - other).abs().max() <= PROBE_TOLERANCE * scale)
