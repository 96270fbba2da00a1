"""What was asked for, checked: the config is the machine, the recipe is the experiment.

Every section refuses unknown keys, every number has bounds, and all errors of all files are told
at once, with file, line, key and what would be allowed, before any weight is loaded.
"""

import difflib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from wmtp.config_files import Document, Key, read_yaml_file
from wmtp.errors import ConfigError
from wmtp.weighting import Weighting, find_weighting
from wmtp.weighting.baseline import Baseline

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """A part of the settings: frozen, typed, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Floats = Annotated[tuple[float, ...], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


# config: the machine ------------------------------------------------------------------------------


class Fsdp(Section):
    """Sharding over several devices."""

    enabled: Literal[False] = Field(
        False, description="one process only in this version; true is refused"
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

    fallback_to_cpu: bool = False
    high_watermark: float = Field(0.9, gt=0, le=2, description="share of recommended memory")
    low_watermark: float = Field(0.8, gt=0, le=2)


class ModelPaths(Section):
    """Pretrained models: Hugging Face directories."""

    base: str | None = Field(None, description="where training starts; empty means from scratch")
    ref: str | None = Field(None, description="reference model of rho1-wmtp")


class Checkpoints(Section):
    """What is kept, where and how often."""

    base_path: str = Field("runs", description="folder of all run folders")
    save_interval: int = Field(100, ge=1, description="optimizer steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="older checkpoints are removed")
    save_final: bool = Field(True, description="write final/, the model to take away")


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
    log_interval: int = Field(10, ge=1, description="optimizer steps between logged rows")


# recipe: the experiment ---------------------------------------------------------------------------


class Run(Section):
    """How the run is called."""

    name: str = Field("wmtp", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    tags: Names = ()


class Heads(Section):
    """The prediction heads beyond the trunk's own next-token output."""

    kind: Literal["sequential"] = "sequential"
    horizon: int = Field(4, ge=1, le=16, description="H, tokens predicted at once")
    hidden: Literal["post_norm", "pre_norm"] = "post_norm"
    context: Literal["chained"] = "chained"


class Model(Section):
    """The trunk's shape, for training from scratch, and its heads."""

    kind: Literal["llama"] = "llama"
    hidden_size: int | None = Field(None, ge=8)
    num_layers: int | None = Field(None, ge=1)
    num_heads: int | None = Field(None, ge=1)
    num_kv_heads: int | None = Field(None, ge=1, description="default: num_heads")
    intermediate_size: int | None = Field(None, ge=8, description="default: 8/3 hidden_size")
    vocab_size: int | None = Field(None, ge=2, description="default: the tokenizer's")
    max_seq_length: int | None = Field(None, ge=2, description="default: data.train.max_length")
    rope_theta: float = Field(10000.0, gt=1)
    qk_norm: bool = Field(True, description="for models from scratch")
    tie_embeddings: bool = Field(True, description="for models from scratch")
    dropout: float = Field(0.0, ge=0, lt=1)
    heads: Heads = Heads()

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

    path: str = Field(min_length=1, description="file, folder, shards, or a NAME of paths.datasets")
    split: Literal["all", "train", "validation", "test", "prompt"] = "all"
    format: Literal["auto", "mbpp", "jsonl", "text", "tree"] = "auto"


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Sources = Annotated[
    tuple[Annotated[SourceSpec, BeforeValidator(_as_source)], ...], BeforeValidator(_as_tuple)
]


class TrainData(Section):
    """What is learned."""

    sources: Sources = Field(min_length=1)
    max_length: int = Field(1024, ge=2, description="S, tokens per row")
    batch_size: int = Field(8, ge=1, description="B, rows per micro-batch")
    num_workers: int = Field(0, ge=0, le=64)
    prefetch_factor: int = Field(2, ge=1)
    pack_sequences: bool = Field(True, description="several documents per row, borders kept")
    mask_prompt: bool = Field(True, description="prompts are read but not learned")


class EvalData(Section):
    """What is measured during training and at its end."""

    sources: Sources = ()
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=2, description="default: data.train.max_length")
    max_rows: int | None = Field(None, ge=1, description="measure only so many, evenly spread")


class Data(Section):
    """Text in, rows of tokens out."""

    tokenizer: str | None = Field(
        None, description="tokenizer.json or its folder; default: the base model's or the shards'"
    )
    train: TrainData
    eval: EvalData = EvalData()


class Loss(Section):
    """The weighted multi-token loss."""

    head_scale: Floats | None = Field(None, description="one factor per head; default 1, 0.3, ...")
    chunk_rows: int | None = Field(None, ge=1, description="rows of logits at a time")


class EarlyStopping(Section):
    """Stop when the held-out figure no longer falls."""

    enabled: bool = False
    monitor: str = Field("eval/loss", pattern=r"^eval/(loss|ce/head_\d+)$")
    patience: int = Field(3, ge=1, description="evaluations without improvement")
    min_delta: float = Field(0.0, ge=0)


class Train(Section):
    """How long, and what moves."""

    max_steps: int | None = Field(None, ge=1)
    num_epochs: float | None = Field(None, gt=0)
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per step")
    gradient_checkpointing: bool = False
    freeze: Literal["none", "trunk"] = "none"
    eval_interval: int | None = Field(None, ge=1, description="steps between evaluations")
    early_stopping: EarlyStopping = EarlyStopping()

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of max_steps and num_epochs")
        return self


class Optim(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(3e-4, gt=0, le=10)
    weight_decay: float = Field(0.1, ge=0, le=1)
    betas: Annotated[tuple[float, float], BeforeValidator(_as_tuple)] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0, lt=1)
    grad_clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    scheduler: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    decay_fraction: float = Field(0.2, ge=0, le=1, description="last part of a wsd schedule")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of a decay")

    @model_validator(mode="after")
    def _in_bounds(self) -> "Optim":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must be at least 0 and below 1")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        return self


class Recipe(Section):
    """``--recipe``: the experiment."""

    run: Run = Run()
    model: Model = Model()
    data: Data
    weighting: InstanceOf[Weighting] = Field(description="algorithm: and that algorithm's keys")
    loss: Loss = Loss()
    train: Train
    optim: Optim = Optim()

    @property
    def head_scale(self) -> tuple[float, ...]:
        """``c``, one factor per head."""
        return self.loss.head_scale or (1.0, *[0.3] * (self.model.heads.horizon - 1))

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        horizon = self.model.heads.horizon
        scale = self.head_scale
        if len(scale) != horizon or min(scale) < 0 or max(scale) <= 0:
            raise ValueError(
                f"loss.head_scale {list(scale)} must have {horizon} factors of at least 0, "
                "not all 0, one per head (model.heads.horizon)"
            )
        if self.train.freeze == "trunk" and horizon == 1:
            raise ValueError(
                "train.freeze is 'trunk' but model.heads.horizon is 1: nothing to train"
            )
        length = self.model.max_seq_length
        if length and length < max(self.data.train.max_length, self.data.eval.max_length or 0):
            raise ValueError(f"data max_length exceeds model.max_seq_length {length}")
        stopping = self.train.early_stopping
        if stopping.enabled and not (self.data.eval.sources and self.train.eval_interval):
            raise ValueError("train.early_stopping needs data.eval.sources and train.eval_interval")
        if stopping.monitor not in ("eval/loss", *(f"eval/ce/head_{k}" for k in range(horizon))):
            raise ValueError(
                f"train.early_stopping.monitor is '{stopping.monitor}', but model.heads.horizon "
                f"{horizon} has heads 0 to {horizon - 1}"
            )
        return self


class Settings(Section):
    """Config and recipe together: everything a run was asked to do."""

    config: Config
    recipe: Recipe
    algorithm: str

    def as_dict(self) -> dict[str, Any]:
        """The effective settings as plain values, as written to ``run.yaml``."""
        recipe = self.recipe.model_dump(mode="json")
        fields = self.recipe.weighting.model_dump(mode="json")
        recipe["weighting"] = {"algorithm": self.algorithm, **fields}
        return {"config": self.config.model_dump(mode="json"), "recipe": recipe}


# reading ------------------------------------------------------------------------------------------

FORMER_KEYS: dict[Key, str] = {
    ("rho1",): "weighting (algorithm: rho1-wmtp)",
    ("critic",): "weighting (algorithm: critic-wmtp)",
    ("optimizer",): "optim",
    ("train", "algo"): "weighting.algorithm",
    ("algo",): "weighting.algorithm",
}


def load_settings(
    config_path: str | None,
    recipe_path: str,
    *,
    profiles: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
) -> Settings:
    """Read and check both files; later profiles and overrides win.

    Args:
        config_path: YAML file of the machine; None takes the defaults.
        recipe_path: YAML file of the experiment.
        profiles: partial configs laid over the config.
        overrides: ``recipe.optim.lr=3e-4``; the leading ``config.`` or ``recipe.`` may be left out.

    Raises:
        ConfigError: anything is wrong; the message has one line per fault.
    """
    config, faults = _read(config_path, "config")
    for profile in profiles:
        over, more = _read(profile, "profile")
        faults += more
        config.lay_over(over)
    recipe, more = _read(recipe_path, "recipe")
    faults += more
    for text in overrides:
        _override(config, recipe, text, faults)
    faults += config.errors + recipe.errors

    checked_config = _check(Config, config, faults)
    algorithm, weighting = _check_weighting(recipe, Path(recipe_path).parent, faults)
    recipe.values["weighting"] = weighting
    checked_recipe = _check(Recipe, recipe, faults)
    if faults or checked_config is None or checked_recipe is None:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return Settings(config=checked_config, recipe=checked_recipe, algorithm=algorithm)


FIXED_AT_START = ("recipe.model.", "recipe.data.tokenizer", "config.devices.seed")
"""What a resumed run cannot change: its checkpoint was made with it."""


def changes_since(run_file: Path, settings: Settings) -> list[str]:
    """Lines on what a resumed run does otherwise than it began; run.yaml says how it began.

    Raises:
        ConfigError: a key has changed that the checkpoint depends on.
    """
    before = _flat(read_yaml_file(str(run_file)).values)
    lines = []
    for key, now in _flat(settings.as_dict()).items():
        if key not in before or before[key] == now:
            continue
        if key.startswith(FIXED_AT_START):
            raise ConfigError(
                f"{key} is {now!r}, but the run began with {before[key]!r}. "
                "Put it back, or start anew with another --run-name."
            )
        lines.append(f"{key} is now {now!r}; the run began with {before[key]!r}")
    return lines


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read(path: str | None, what: str) -> tuple[Document, list[str]]:
    if path is None:
        return Document(origins={(): f"--{what}"}), []
    try:
        return read_yaml_file(path), []
    except ConfigError as error:  # told together with the other file's faults
        return Document(origins={(): path}, readable=False), [str(error)]


def _override(config: Document, recipe: Document, text: str, faults: list[str]) -> None:
    name, equals, value = text.partition("=")
    key = name.strip().split(".")
    if not equals or not all(key):
        faults.append(f"--set {text}: write it as section.key=value.")
        return
    if key[0] in ("config", "recipe") and len(key) > 1:
        document, key = (config if key[0] == "config" else recipe), key[1:]
    elif key[0] in Config.model_fields:
        document = config
    elif key[0] in Recipe.model_fields:
        document = recipe
    else:
        known = [*Config.model_fields, *Recipe.model_fields]
        faults.append(f"--set {text}: no section {key[0]!r}.{_nearest(key[0], known)}")
        return
    document.set(key, value, f"--set {text}")


def _check_weighting(recipe: Document, folder: Path, faults: list[str]) -> tuple[str, Weighting]:
    fields = recipe.values.get("weighting")
    origin = recipe.origin(("weighting",))
    if not isinstance(fields, dict) or not isinstance(fields.get("algorithm"), str):
        if recipe.readable and not recipe.errors:
            faults.append(
                f"{origin}: weighting.algorithm is missing. Use for instance baseline-mtp."
            )
        return "baseline-mtp", Baseline()
    algorithm: str = fields["algorithm"]
    try:
        kind = find_weighting(algorithm, folder)
    except ConfigError as error:
        faults.append(f"{recipe.origin(('weighting', 'algorithm'))}: {error}")
        return algorithm, Baseline()
    inner = Document(
        values={key: value for key, value in fields.items() if key != "algorithm"},
        origins={
            key[1:]: place for key, place in recipe.origins.items() if key[:1] == ("weighting",)
        },
    )
    return algorithm, _check(kind, inner, faults, prefix=("weighting",)) or Baseline()


def _check(model: type[M], document: Document, faults: list[str], prefix: Key = ()) -> M | None:
    if not document.readable:
        return None
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            faults.append(_fault(model, document, detail, prefix))
        return None


def _fault(model: type[BaseModel], document: Document, detail: ErrorDetails, prefix: Key) -> str:
    """One line: where, which key, what was found, what is allowed."""
    key: Key = detail["loc"]
    dotted = ".".join(str(part) for part in (*prefix, *key))
    origin = document.origin(key)
    found = detail["input"]
    kind = detail["type"]
    allowed = detail.get("ctx", {})
    if kind == "extra_forbidden":
        former = FORMER_KEYS.get((*prefix, *key))
        if former:
            return f"{origin}: {dotted} is now called {former}."
        siblings = _keys_of(model, key[:-1])
        return f"{origin}: {dotted}: no such key.{_nearest(str(key[-1]), siblings)}"
    if kind == "missing":
        return f"{origin}: {dotted} is missing."
    if kind == "literal_error":
        options = str(allowed["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{origin}: {dotted} is {found!r}.{_nearest(str(found), options)}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{origin}: {dotted} is {found!r}, but a section with keys is expected."
    if kind == "value_error":
        return f"{origin}: {dotted + ': ' if dotted else ''}{allowed['error']}."
    if kind in ("too_short", "too_long"):
        bound = f"at least {allowed.get('min_length')}" if kind == "too_short" else "fewer"
        return f"{origin}: {dotted} has {allowed['actual_length']} usable values; {bound} needed."
    if kind == "tuple_type":
        return f"{origin}: {dotted} is {found!r}, but a list is expected, as in [{found}]."
    message = detail["msg"].removeprefix("Input ").removeprefix("String ")
    shown = list(found) if isinstance(found, tuple) else found
    return f"{origin}: {dotted} is {shown!r}: it {message}."


def _keys_of(model: type[BaseModel], path: Key) -> list[str]:
    """The keys of the section at a path, for naming the nearest one."""
    section: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and section is not None:
            section = section_of(section.model_fields[part].annotation)
    return list(section.model_fields) if section is not None else []


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside ``X``, ``X | None`` or ``tuple[X, ...]``, None if there is none."""
    while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        inner = [
            part for part in typing.get_args(annotation) if part not in (types.NoneType, Ellipsis)
        ]
        if not inner or typing.get_origin(annotation) is Literal:
            return None
        annotation = inner[0]
    return annotation


def _nearest(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} Allowed: {', '.join(options)}." if options else hint
