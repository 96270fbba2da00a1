"""The sizes of a Llama-family decoder, and of the blocks that heads are made of."""

from dataclasses import dataclass

from wmtp.model.rotary import Llama3Scaling

LARGEST_WIDTH = 1 << 20
LARGEST_VOCABULARY = 1 << 24
LARGEST_LENGTH = 1 << 31
MOST_LAYERS = 1000
"""Far beyond any model there is, and small enough to be looked at before it is refused."""


@dataclass(frozen=True)
class LlamaShape:
    """Everything that fixes the trunk's tensors and arithmetic.

    Attributes:
        head_dim: width of one attention head; ``num_heads * head_dim`` need not be ``hidden_size``.
        max_seq_length: most positions of one row, cached ones included.
        norm_eps: added to the mean square inside every norm.
        qk_norm: norm queries and keys per head before the rotation (Qwen3).
        tie_embeddings: the unembedding is the embedding.
        final_norm_gain: the norm before the unembedding (of the trunk and of every head) has a
            learned gain. Without one, what it passes on and what it reads are the same to the
            next norm, so that one checkpoint suits engines that chain heads after the norm and
            engines that chain them before it.
        dropout: probability on both residual branches of a block while training.

    Raises:
        ValueError: the numbers do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_length: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    qk_norm: bool = False
    rope_scaling: Llama3Scaling | None = None
    final_norm_gain: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")
        if not self.qk_norm and self.hidden_size % self.num_heads:
            # transformers' LlamaConfig refuses it, although head_dim makes it harmless.
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1)")
