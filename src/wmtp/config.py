"""What may be asked for: the config is the machine, the recipe is the experiment.

Every section refuses unknown keys and every number has bounds. ``config_check.load_settings``
reads files into these sections.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    SerializeAsAny,
    model_validator,
)

from wmtp.runtime.environment import HIGH_WATERMARK, LOW_WATERMARK
from wmtp.secrets import without_secrets
from wmtp.sections import Section, as_tuple
from wmtp.weighting import Weighting, find_critic

Floats = Annotated[tuple[float, ...], BeforeValidator(as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


# config: the machine ------------------------------------------------------------------------------


class Fsdp(Section):
    """Sharding over several devices."""

    enabled: bool = Field(
        False, description="each rank keeps a slice of the model; false: a copy of all of it"
    )
    sharding: Literal["full", "hybrid"] = Field(
        "full", description="over all ranks, or within a machine with copies between machines"
    )


class Devices(Section):
    """Where and in which precision to compute."""

    compute_backend: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    mixed_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    use_torch_compile: bool = Field(
        False, description="compile the trunk; the loss is not compiled"
    )
    fsdp: Fsdp = Fsdp()
    seed: int = Field(0, ge=0, lt=2**63)


class MpsOptimizations(Section):
    """Apple settings, put into the environment before torch is imported."""

    use_graph_mode: bool = Field(
        False, description="refused if true: that mode (reduce-overhead) records graphs of CUDA"
    )
    fallback_to_cpu: bool = Field(
        False, description="run on the CPU what has no Metal kernel; slow, and hides it"
    )
    high_watermark: float = Field(
        HIGH_WATERMARK, gt=0, le=2, description="share of recommended memory"
    )
    low_watermark: float = Field(LOW_WATERMARK, gt=0, le=2)

    @model_validator(mode="after")
    def _can_be_had(self) -> "MpsOptimizations":
        if self.use_graph_mode:
            raise ValueError(
                "use_graph_mode is true, but that mode (torch.compile's reduce-overhead) records "
                "CUDA graphs, which Apple's chips have not: set use_graph_mode: false"
            )
        if self.low_watermark > self.high_watermark:
            raise ValueError(
                f"low_watermark {self.low_watermark} is above high_watermark "
                f"{self.high_watermark}: caches would be freed only after memory is refused"
            )
        return self


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


ModelPath = Annotated[str | None, BeforeValidator(_empty_is_none)]
"""``"${WMTP_BASE:-}"`` in quotes, as braces around it demand, is empty text where it is not set."""


class ModelPaths(Section):
    """Pretrained models: directories, or names of the Hugging Face hub."""

    base: ModelPath = Field(None, description="where training starts; empty means from scratch")
    ref: ModelPath = Field(None, description="reference model of rho1-wmtp")
    rm: ModelPath = Field(None, description="reward model of critic-wmtp, where it needs one")


class Checkpoints(Section):
    """What is kept, where and how often."""

    base_path: str = Field("runs", description="folder of all run folders")
    save_interval: int = Field(100, ge=1, le=10**12, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, le=10**6, description="older checkpoints are removed")
    save_final: bool = Field(True, description="write final/, the model to take away")
    asynchronous: bool = Field(
        False, description="write checkpoints behind training, from a copy in the CPU's memory"
    )
    upload_to: str | None = Field(
        None, description="copy checkpoints and results there: s3://bucket/prefix (wmtp[s3])"
    )

    @model_validator(mode="after")
    def _here_and_there(self) -> "Checkpoints":
        if "://" in self.base_path:
            raise ValueError(
                f"base_path is '{without_secrets(self.base_path)}', but must be a folder of this "
                "machine: set upload_to to that address, and what is saved is copied there"
            )
        if self.upload_to is not None and "://" not in self.upload_to:
            raise ValueError(
                f"upload_to is '{self.upload_to}', but must be an address such as "
                "s3://bucket/prefix"
            )
        return self


class Paths(Section):
    """Files and folders of this machine."""

    models: ModelPaths = ModelPaths()
    datasets: dict[str, str] = Field({}, description="NAME: path, for data sources that say NAME")
    checkpoints: Checkpoints = Checkpoints()


class Mlflow(Section):
    """Tracking with MLflow, outside the training loop."""

    enabled: bool = True
    experiment: str = "wmtp"
    tracking_uri: str | None = Field(None, description="default: sqlite file in base_path")
    log_checkpoints: Literal["none", "final"] = Field(
        "none", description="final: store the model in final/ as the run's artifact, at the end"
    )


class Tensorboard(Section):
    """Event files in the run folder; needs the extra ``wmtp[tensorboard]``."""

    enabled: bool = False


class Config(Section):
    """``--config``: the machine."""

    devices: Devices = Devices()
    mps_optimizations: MpsOptimizations = MpsOptimizations()
    paths: Paths = Paths()
    mlflow: Mlflow = Mlflow()
    tensorboard: Tensorboard = Tensorboard()
    log_interval: int = Field(10, ge=1, le=10**12, description="steps between logged rows")

    @model_validator(mode="after")
    def _final_is_there_to_log(self) -> "Config":
        if self.mlflow.log_checkpoints == "final" and not self.paths.checkpoints.save_final:
            raise ValueError(
                "mlflow.log_checkpoints is 'final', but paths.checkpoints.save_final is false: "
                "there is no model to log"
            )
        return self


# recipe: the experiment ---------------------------------------------------------------------------


class Run(Section):
    """How the run is called."""

    name: str = Field("wmtp", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    tags: Names = ()


class Heads(Section):
    """The prediction heads beyond the trunk's own next-token output."""

    kind: Literal["sequential", "parallel", "linear"] = Field(
        "sequential", description="a chain of blocks, blocks side by side, or one matrix each"
    )
    horizon: int = Field(4, ge=1, le=16, description="H, tokens predicted at once")
    hidden: Literal["post_norm", "pre_norm"] = Field(
        "post_norm", description="trunk output that feeds sequential heads"
    )
    context: Literal["chained", "trunk", "mix"] = Field(
        "chained",
        description="rows a sequential head attends to: its own, those of the trunk as in "
        "llama.cpp, or in turns",
    )


class Model(Section):
    """The trunk's shape, for training from scratch, and its heads."""

    kind: Literal["llama", "hf"] = Field(
        "llama", description="our own decoder, or any dense causal model run by transformers"
    )
    architecture: str | None = Field(
        None, description="of kind hf from scratch: a model_type of transformers, such as gpt2"
    )
    hidden_size: int | None = Field(None, ge=8, le=2**16)
    num_layers: int | None = Field(None, ge=1, le=1000)
    num_heads: int | None = Field(None, ge=1, le=1024)
    num_kv_heads: int | None = Field(None, ge=1, le=1024, description="default: num_heads")
    intermediate_size: int | None = Field(
        None, ge=8, le=2**20, description="default: 8/3 hidden_size"
    )
    vocab_size: int | None = Field(None, ge=2, le=2**24, description="default: the tokenizer's")
    max_seq_length: int | None = Field(
        None, ge=2, le=2**24, description="default: data.train.max_length"
    )
    rope_theta: float = Field(10000.0, gt=1)
    qk_norm: bool = Field(True, description="for models from scratch")
    tie_embeddings: bool = Field(True, description="for models from scratch")
    final_norm_gain: bool | None = Field(
        None,
        description="a gain in the norms before the unembedding; empty: as stored, or there is "
        "one; false moves a stored one into the unembedding, which is then not tied",
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    heads: Heads = Heads()

    @model_validator(mode="after")
    def _kind_has_its_keys(self) -> "Model":
        if self.kind == "llama":
            if self.architecture is not None:
                raise ValueError("architecture is for kind hf; the llama trunk is one architecture")
            return self
        unused = [
            name
            for name in (
                "num_kv_heads",
                "intermediate_size",
                "rope_theta",
                "qk_norm",
                "final_norm_gain",
            )
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if unused:
            raise ValueError(
                f"{', '.join(unused)} cannot be chosen with kind hf: the architecture decides"
            )
        if self.heads.hidden == "pre_norm" and self.heads.kind == "sequential":
            raise ValueError(
                "heads.hidden is pre_norm, but a trunk of kind hf shows its output after the last "
                "norm only: use post_norm"
            )
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> "Model":
        if self.hidden_size and self.num_heads:
            if self.hidden_size % (2 * self.num_heads):
                raise ValueError(
                    f"hidden_size {self.hidden_size} must be an even multiple of "
                    f"num_heads {self.num_heads}"
                )
            if self.num_kv_heads and self.num_heads % self.num_kv_heads:
                raise ValueError(
                    f"num_heads {self.num_heads} must be a multiple of "
                    f"num_kv_heads {self.num_kv_heads}"
                )
        return self


class SourceSpec(Section):
    """Where documents come from; a bare string is its path."""

    path: str = Field(
        min_length=1,
        description="file, folder, shards, NAME of paths.datasets, or ORG/NAME of the hub",
    )
    split: Literal["all", "train", "validation", "test", "prompt"] = "all"
    format: Literal["auto", "mbpp", "humaneval", "contest", "jsonl", "text", "tree"] = "auto"
    solutions: Literal["correct", "all"] = Field(
        "correct", description="of a contest: correct programs, or all of them with a reward"
    )


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Sources = Annotated[
    tuple[Annotated[SourceSpec, BeforeValidator(_as_source)], ...], BeforeValidator(as_tuple)
]


class TrainData(Section):
    """What is learned."""

    sources: Sources = Field(min_length=1)
    max_length: int = Field(1024, ge=2, le=2**24, description="S, tokens per row")
    batch_size: int = Field(8, ge=1, le=2**20, description="B, rows per micro-batch")
    num_workers: int = Field(0, ge=0, le=64)
    prefetch_factor: int = Field(2, ge=1, le=1000)
    pack_sequences: bool = Field(True, description="several documents per row, borders kept")
    mask_prompt: bool = Field(True, description="prompts are read but not learned")


class EvalData(Section):
    """What is measured during training and at its end."""

    sources: Sources = ()
    batch_size: int = Field(8, ge=1, le=2**20)
    max_length: int | None = Field(
        None, ge=2, le=2**24, description="default: data.train.max_length"
    )
    max_rows: int | None = Field(
        None, ge=1, le=10**12, description="measure only so many, evenly spread"
    )


class RewardData(Section):
    """What the value head of critic-wmtp learns from, before the model is trained."""

    sources: Sources = Field((), description="documents with rewards; default: data.train.sources")


class Data(Section):
    """Text in, rows of tokens out."""

    tokenizer: str | None = Field(
        None, description="tokenizer.json or its folder; default: the base model's or the shards'"
    )
    train: TrainData
    eval: EvalData = EvalData()
    rewards: RewardData = RewardData()


class Anneal(Section):
    """How the heads' factors move while training."""

    to: Floats | None = Field(None, description="loss.head_scale at the end; null: it stays")
    begin: float = Field(0.0, ge=0, le=1, description="share of all steps when it starts to move")
    end: float = Field(1.0, ge=0, le=1, description="share of all steps when it has arrived")

    @model_validator(mode="after")
    def _in_order(self) -> "Anneal":
        if self.end < self.begin:
            raise ValueError(f"end {self.end} is before begin {self.begin}")
        return self


class Loss(Section):
    """The weighted multi-token loss."""

    head_scale: Floats | None = Field(None, description="one factor per head; default 1, 0.3, ...")
    anneal: Anneal = Anneal()
    distill: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the trunk's own distribution in the further heads' targets",
    )
    z_loss: float = Field(
        0.0,
        ge=0,
        le=1,
        description="factor of the squared log of the softmax's sum, such as 1e-4: holds logits "
        "near 0; 0 costs nothing",
    )
    chunk_rows: int | None = Field(None, ge=1, le=2**24, description="rows of logits at a time")


class EarlyStopping(Section):
    """Stop when the held-out figure no longer falls."""

    enabled: bool = False
    monitor: str = Field("eval/loss", pattern=r"^eval/(loss|ce/head_\d+)$")
    patience: int = Field(3, ge=1, le=10**6, description="evaluations without improvement")
    min_delta: float = Field(0.0, ge=0)


class Samples(Section):
    """Texts that the model writes while it trains, one row each in ``samples.jsonl``."""

    prompts: Names = Field((), description="what it continues, without drawing; empty: none")
    interval: int = Field(500, ge=1, le=10**12, description="steps between them; also at the end")
    max_new_tokens: int = Field(64, ge=1, le=10**6, description="of each text")

    @model_validator(mode="after")
    def _prompts_say_something(self) -> "Samples":
        if "" in self.prompts:
            raise ValueError("a prompt is empty: give it at least one character")
        return self


class Train(Section):
    """How long, and what moves."""

    max_steps: int | None = Field(None, ge=1, le=10**12)
    num_epochs: float | None = Field(None, gt=0, le=1e9)
    tokens_per_step: int | None = Field(
        None,
        ge=2,
        le=2**40,
        description="tokens of an optimizer step, a multiple of data.train.max_length; as many "
        "micro-batches of at most data.train.batch_size rows as that takes",
    )
    gradient_accumulation: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="micro-batches per step, where tokens_per_step does not say; default: 1",
    )
    gradient_checkpointing: bool = False
    freeze: Literal["none", "trunk"] = "none"
    eval_interval: int | None = Field(
        None, ge=1, le=10**12, description="steps between evaluations"
    )
    early_stopping: EarlyStopping = EarlyStopping()
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="after a gradient that is not finite; skip passes over that step"
    )
    skip_limit: int = Field(
        10, ge=1, le=1_000_000, description="so many skipped steps in a run end it"
    )
    average_last: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="at the end write average/, the mean of so many checkpoints",
    )
    samples: Samples = Samples()

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of max_steps and num_epochs")
        if self.tokens_per_step is not None and self.gradient_accumulation is not None:
            raise ValueError(
                "tokens_per_step and gradient_accumulation both say how large a step is: remove one"
            )
        return self


class Optim(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon"] = Field(
        "adamw", description="muon moves hidden matrices, AdamW all else"
    )
    lr: float = Field(3e-4, gt=0, le=10)
    value_lr: float | None = Field(
        None, gt=0, le=10, description="of the value head; default: lr, and 1e-3 in stage 1"
    )
    weight_decay: float = Field(0.1, ge=0, le=1)
    betas: Annotated[tuple[float, float], BeforeValidator(as_tuple)] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0, lt=1)
    grad_clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    scheduler: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup_steps: int = Field(0, ge=0, le=10**12)
    decay_fraction: float = Field(0.2, ge=0, le=1, description="last part of a wsd schedule")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of a decay")

    @model_validator(mode="after")
    def _in_bounds(self) -> "Optim":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must be at least 0 and below 1")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        return self


class Marks(Section):
    """What a model is to reach; ``wmtp evaluate`` says by how much it was met or missed."""

    bits_per_byte: float | None = Field(None, gt=0, description="below this, on the held-out text")
    tokens_per_second: float | None = Field(None, gt=0, description="above this, decoding")


class Evaluation(Section):
    """How the finished model is judged; training does not look at it."""

    marks: Marks = Marks()


class Recipe(Section):
    """``--recipe``: the experiment."""

    run: Run = Run()
    model: Model = Model()
    data: Data
    weighting: SerializeAsAny[InstanceOf[Weighting]] = Field(
        description="algorithm: and that algorithm's keys"
    )
    loss: Loss = Loss()
    train: Train
    optim: Optim = Optim()
    evaluation: Evaluation = Evaluation()

    @property
    def rows_per_step(self) -> int:
        """Rows of data in one optimizer step, over all ranks."""
        train, data = self.train, self.data.train
        if train.tokens_per_step is not None:
            return train.tokens_per_step // data.max_length
        return data.batch_size * (train.gradient_accumulation or 1)

    @property
    def micro_batch_rows(self) -> int:
        """Rows of one micro-batch: no more than a step has."""
        return min(self.data.train.batch_size, self.rows_per_step)

    @property
    def head_scale(self) -> tuple[float, ...]:
        """``c``, one factor per head."""
        return self.loss.head_scale or (1.0, *[0.3] * (self.model.heads.horizon - 1))

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        faults = list(self._disagreements())
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _disagreements(self) -> Iterator[str]:
        """What of one section does not go with another, each in a line."""
        horizon = self.model.heads.horizon
        for key, scale in (
            ("loss.head_scale", self.head_scale),
            ("loss.anneal.to", self.loss.anneal.to),
        ):
            if scale and (len(scale) != horizon or min(scale) < 0 or max(scale) <= 0):
                yield (
                    f"{key} {list(scale)} must have {horizon} factors of at least 0, "
                    "not all 0, one per head (model.heads.horizon)"
                )
        later = zip(self.head_scale, self.loss.anneal.to or self.head_scale, strict=False)
        if self.loss.distill > 0 and not any(max(both) > 0 for both in list(later)[1:]):
            yield (
                f"loss.distill is {self.loss.distill}, but no head beyond the trunk's own learns: "
                "set it to 0, or raise model.heads.horizon and loss.head_scale"
            )
        if self.loss.z_loss > 0 and self.loss.distill > 0:
            yield "loss.z_loss and loss.distill do not go together: set one of them to 0"
        tokens, row = self.train.tokens_per_step, self.data.train.max_length
        if tokens is not None and tokens % row:
            yield (
                f"train.tokens_per_step {tokens} is no multiple of data.train.max_length {row}: "
                f"use {max(1, round(tokens / row)) * row}"
            )
        if find_critic(self.weighting) is None:
            for key, given in (
                ("data.rewards", self.data.rewards.sources),
                ("optim.value_lr", self.optim.value_lr),
            ):
                if given:
                    yield f"{key} is for weighting.algorithm critic-wmtp alone: remove it"
        if self.train.freeze == "trunk" and horizon == 1:
            yield "train.freeze is 'trunk' but model.heads.horizon is 1: nothing to train"
        length = self.model.max_seq_length
        if length and length < max(self.data.train.max_length, self.data.eval.max_length or 0):
            yield f"data max_length exceeds model.max_seq_length {length}"
        critic = find_critic(self.weighting)
        of_stage1 = 0 if critic is None else critic.stage1.max_length or 0
        if length and length < of_stage1:
            yield f"weighting.stage1.max_length {of_stage1} exceeds model.max_seq_length {length}"
        stopping = self.train.early_stopping
        if stopping.enabled and not (self.data.eval.sources and self.train.eval_interval):
            yield "train.early_stopping needs data.eval.sources and train.eval_interval"
        if stopping.monitor not in ("eval/loss", *(f"eval/ce/head_{k}" for k in range(horizon))):
            yield (
                f"train.early_stopping.monitor is '{stopping.monitor}', but model.heads.horizon "
                f"{horizon} has heads 0 to {horizon - 1}"
            )


class Settings(Section):
    """Config and recipe together: everything a run was asked to do."""

    config: Config
    recipe: Recipe

    @property
    def algorithm(self) -> str:
        """What the recipe calls its weighting."""
        return self.recipe.weighting.algorithm

    def as_dict(self) -> dict[str, Any]:
        """The effective settings as plain values, as written to ``run.yaml``."""
        return self.model_dump(mode="json")
