"""Files made to do harm, given to every command: refused with exit code 2, and nothing runs.

A pickle that is opened, or code that a model directory brings along, would touch the canary.
"""

import ast
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import wmtp
from wmtp import cli
from wmtp.checkpoints.checkpoint import write_checkpoint
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.export.hugging_face import export_hugging_face
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import save_model
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import build_model
from wmtp.model.stored_config import SpecialTokens
from wmtp.model.value_head import build_value_head, save_value_head

TEXT = "".join(f"def f{i}(a):\n    return a + {i}\n\n" for i in range(40))
PROBLEM = {"task_id": 1, "text": "Two.", "code": "def f(): return 2",
           "test_list": ["assert f() == 2"], "test_setup_code": ""}  # fmt: skip
CANARY = "canary"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

Change = Callable[[Path], None]


# a good world, to be spoilt -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, tokenizer, a llama model, a GPT-2, shards, a value head and a run, all usable."""
    root = tmp_path_factory.mktemp("good")
    (root / "text.txt").write_text(TEXT)
    tokenizer = train_tokenizer([TEXT], 280)
    tokenizer.save(root / "tokenizer")
    shape = LlamaShape(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1,
        num_heads=2, num_kv_heads=2, head_dim=8, max_seq_length=64, rope_theta=1e4,
        norm_eps=1e-5, tie_embeddings=False,
    )  # fmt: skip
    model = build_model(shape, HeadsShape(2), seed=1)
    special = SpecialTokens(None, (tokenizer.eos_id,))
    save_model(model, root / "llama", special_tokens=special)
    tokenizer.save(root / "llama")
    export_hugging_face(root / "llama", root / "export", dtype="f32", trunk_only=False, layout="hf")
    sizes = {"vocab_size": tokenizer.vocab_size, "n_embd": 16, "n_layer": 1, "n_head": 2,
             "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(root / "gpt2")
    judge = GPT2Config(**sizes, num_labels=1, pad_token_id=0)
    GPT2ForSequenceClassification(judge).save_pretrained(root / "rm")
    for name in ("gpt2", "rm"):
        tokenizer.save(root / name)
    save_value_head(build_value_head(16, "linear", 0), root / "value_head", {})
    assert run("data", "prepare", "--source", root / "text.txt", "--tokenizer", root / "tokenizer",
               "--out", root / "shards") == 0  # fmt: skip

    def fill(folder: Path) -> None:
        save_model(model, folder, special_tokens=special)
        tokenizer.save(folder)

    (root / "problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (root / "format.yaml").write_text("template: '{description}'\nstop: ['#']\n")
    (root / "samples.jsonl").write_text('{"task_id": 1, "completion": "def f(): return 2"}\n')
    (root / "tracked/tracking").mkdir(parents=True)
    (root / "tracked/run.yaml").write_text(
        "config: {mlflow: {enabled: false}, tensorboard: {enabled: true}}\n"
        "recipe: {run: {name: tracked}, weighting: {algorithm: baseline-mtp}}\n"
    )
    for name in ("compared", "rival"):
        (root / name).mkdir()
        (root / name / "evaluation.json").write_text('{"perplexity": {"each": [[9, 20, 30.0]]}}')
        (root / name / "run.yaml").write_text(
            "config: {devices: {seed: 0}}\n"
            "recipe: {weighting: {algorithm: column}, model: {heads: {horizon: 4}}}\n"
        )
        (root / name / "metrics.jsonl").write_text('{"step": 1, "eval/loss": 2.5}\n')
    (root / "tracked/metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    raw = {"text": "서울은 대한민국의 수도이고 부산은 바다에 닿아 있다."}
    (root / "raw.jsonl").write_text(json.dumps(raw) + "\n")
    (root / "questions.json").write_text('["대한민국의 수도는 어디인가?"]')
    (root / "sources.yaml").write_text(
        "sources: [{name: a, paths: [raw.jsonl], format: jsonl, license: CC0-1.0}]\n"
        "decontaminate: [questions.json]\n"
    )
    (root / "report.json").write_text(
        '{"format": 1, "wmtp": "0", "torch": "2", "python": "3", "system": "Linux", "chip": "x", '
        '"cores": 1, "memory_gibibytes": 1.0, "devices": {}, "figures": [], "left_out": []}'
    )
    (root / "run/checkpoints").mkdir(parents=True)
    write_checkpoint(root / "run/checkpoints", 1, fill, 3)
    return root


@pytest.fixture
def world(good: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "world"))


def run(*arguments: object) -> int:
    """A command, as it is typed, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wmtp", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def settings(world: Path, config: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """Config and recipe of a run in this world, as arguments."""
    whole_config = {
        "devices": {"compute_backend": "cpu"},
        "mlflow": {"enabled": False},
        "paths": {"checkpoints": {"base_path": str(world / "runs")}, **config},
    }
    whole_recipe = {
        "model": {"heads": {"horizon": 2}},
        "data": {"train": {"sources": [str(world / "text.txt")], "max_length": 16}},
        "weighting": {"algorithm": "baseline-mtp"},
        "train": {"max_steps": 1},
        **recipe,
    }
    for name, content in (("config", whole_config), ("recipe", whole_recipe)):
        (world / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return ["--config", str(world / "config.yaml"), "--recipe", str(world / "recipe.yaml")]


def from_scratch(world: Path) -> dict[str, Any]:
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "heads": {"horizon": 2}}
    data = {"tokenizer": str(world / "tokenizer"),
            "train": {"sources": [str(world / "text.txt")], "max_length": 16}}  # fmt: skip
    return {"model": shape, "data": data}


def with_data(world: Path, **data: Any) -> dict[str, Any]:
    recipe = from_scratch(world)
    return {**recipe, "data": {**recipe["data"], **data}}


def sources(world: Path) -> dict[str, Any]:
    return {"sources": [str(world / "text.txt")], "max_length": 16}


OUT = ("--out", "out")
DRY = "--dry-run"
CRITIC = {
    "algorithm": "critic-wmtp", "reward": "model", "value_loss": "mse", "stage1": {"max_steps": 1},
}  # fmt: skip

# Every command and option that reads a file, by what kind of thing it reads. A command that is not
# here fails test_every_command_has_its_rows.
SLOTS: dict[str, dict[str, tuple[str, Callable[[Path], list[Any]]]]] = {
    "plan": {
        "--recipe": ("settings", lambda w: ["--recipe", w / "settings.yaml"]),
        "--config": (
            "settings",
            lambda w: [*settings(w, {}, from_scratch(w)), "--config", w / "settings.yaml"],
        ),
        "data.tokenizer": ("tokenizer", lambda w: settings(w, {}, from_scratch(w))),
    },
    "train": {
        "--recipe": ("settings", lambda w: ["--recipe", w / "settings.yaml"]),
        "--config": (
            "settings",
            lambda w: [*settings(w, {}, from_scratch(w)), "--config", w / "settings.yaml"],
        ),
        "--profile": (
            "settings",
            lambda w: [*settings(w, {}, from_scratch(w)), "--profile", w / "settings.yaml"],
        ),
        "--resume": (
            "checkpoint",
            lambda w: [
                *settings(w, {"checkpoints": {"base_path": str(w)}}, from_scratch(w)),
                "--run-name", "run", "--resume", w / "run/checkpoints/step-00000001",
            ],
        ),
        "base": ("model", lambda w: settings(w, {"models": {"base": str(w / "llama")}}, {})),
        "base of kind hf": (
            "gpt2",
            lambda w: settings(
                w, {"models": {"base": str(w / "gpt2")}},
                {"model": {"kind": "hf", "heads": {"horizon": 2}}},
            ),
        ),
        "ref": (
            "model",
            lambda w: settings(
                w, {"models": {"ref": str(w / "llama")}},
                {**from_scratch(w), "weighting": {"algorithm": "rho1-wmtp"}},
            ),
        ),
        "rm": (
            "rm",
            lambda w: settings(
                w, {"models": {"rm": str(w / "rm")}},
                {**with_data(w, train={"sources": [str(rewarded(w))], "max_length": 16}),
                 "weighting": CRITIC},
            ),
        ),
        "value_head": (
            "value_head",
            lambda w: settings(
                w, {"models": {"rm": str(w / "gpt2"), "base": str(w / "llama")}},
                {"weighting": {**CRITIC, "reward": "column", "value_head": str(w / "value_head")},
                 "data": {"train": {"sources": [str(rewarded(w))], "max_length": 16}}},
            ),
        ),
        "data.tokenizer": ("tokenizer", lambda w: settings(w, {}, from_scratch(w))),
        "data.train.sources": ("text", lambda w: settings(w, {}, from_scratch(w))),
        "data.eval.sources": (
            "text",
            lambda w: settings(
                w, {}, with_data(w, train={"sources": [__file__], "max_length": 16},
                                 eval={"sources": [str(w / "text.txt")]}),
            ),
        ),
        "shards": (
            "shards",
            lambda w: settings(
                w, {}, with_data(w, train={"sources": [str(w / "shards")], "max_length": 16})
            ),
        ),
    },
    "evaluate": {
        "--model": ("model", lambda w: ["--model", w / "llama", "--data", w / "text.txt"]),
        "--model of kind hf": ("gpt2", lambda w: ["--model", w / "gpt2", "--data", w / "text.txt"]),
        "--data": ("text", lambda w: ["--model", w / "llama", "--data", w / "text.txt"]),
        "shards": (
            "shards",
            lambda w: ["--model", w / "llama", "--data", w / "shards", "--suite", "heads"],
        ),
        "run.yaml": (
            "run.yaml",
            lambda w: [
                "--model", shutil.copytree(w / "llama", w / "tracked/final", dirs_exist_ok=True),
                "--data", w / "text.txt", "--suite", "speed",
            ],
        ),
        "--problems": ("problems", lambda w: solving(w)),
        "--prompt-format": (
            "format", lambda w: [*solving(w), "--prompt-format", w / "format.yaml"]
        ),
    },
    "generate": {
        "--model": (
            "model", lambda w: ["--model", w / "llama", "--prompt", "a", "--max-new-tokens", 2]
        ),
    },
    "export": {
        "--model": (
            "model", lambda w: ["--model", w / "llama", "--to", "hf", "--out", w / "as_hf"]
        ),
        "--model to gguf": (
            "model", lambda w: ["--model", w / "llama", "--to", "gguf", "--trunk-only",
                                "--out", w / "x.gguf"]
        ),
        "--model of kind hf": (
            "gpt2", lambda w: ["--model", w / "gpt2", "--to", "mlx", "--out", w / "as_mlx"]
        ),
    },
    "verify-export": {
        "--model": ("model", lambda w: verified(w)),
        "--export": ("export", lambda w: verified(w)),
        "--prompts": ("text", lambda w: [*verified(w), "--prompts", w / "text.txt"]),
    },
    "doctor": {
        "--recipe": ("settings", lambda w: ["--recipe", w / "settings.yaml", DRY]),
        "--config": (
            "settings",
            lambda w: [*settings(w, {}, from_scratch(w)), "--config", w / "settings.yaml", DRY],
        ),
        "base": (
            "model", lambda w: [*settings(w, {"models": {"base": str(w / "llama")}}, {}), DRY]
        ),
        "data.tokenizer": ("tokenizer", lambda w: [*settings(w, {}, from_scratch(w)), DRY]),
        "data.train.sources": ("text", lambda w: [*settings(w, {}, from_scratch(w)), DRY]),
    },
    "bench": {
        "--compare": ("report", lambda w: ["--compare", w / "report.json", w / "report.json"]),
    },
    "judge": {
        "SAMPLES": ("samples", lambda w: judged(w)),
        "--problems": ("problems", lambda w: judged(w)),
    },
    "average": {"RUN": ("run", lambda w: [w / "run", "--last", 1])},
    "sync": {
        "run.yaml": ("run.yaml", lambda w: [w / "tracked"]),
        "metrics.jsonl": ("metrics", lambda w: [w / "tracked"]),
    },
    "compare": {
        "evaluation.json": ("evaluation", lambda w: [w / "rival", w / "compared"]),
        "run.yaml": ("compared run.yaml", lambda w: [w / "rival", w / "compared"]),
        "metrics.jsonl": ("compared metrics", lambda w: [w / "rival", w / "compared"]),
    },
    "data prepare": {
        "--source": (
            "text",
            lambda w: ["--source", w / "text.txt", "--tokenizer", w / "tokenizer", *OUT],
        ),
        "--tokenizer": (
            "tokenizer",
            lambda w: ["--source", w / "text.txt", "--tokenizer", w / "tokenizer", *OUT],
        ),
        "--sources": ("sources", lambda w: ["--sources", w / "sources.yaml", *OUT]),
        "sources.0.paths": ("raw", lambda w: ["--sources", w / "sources.yaml", *OUT]),
        "decontaminate": ("questions", lambda w: ["--sources", w / "sources.yaml", *OUT]),
    },
    "data score": {
        "--recipe": ("settings", lambda w: ["--recipe", w / "settings.yaml"]),
        "ref": (
            "model",
            lambda w: settings(w, {"models": {"ref": str(w / "llama")}}, from_scratch(w)),
        ),
    },
    "data inspect": {"SHARDS": ("shards", lambda w: [w / "shards"])},
    "tokenizer train": {
        "--source": (
            "text", lambda w: ["--source", w / "text.txt", "--out", w / "o", "--vocab-size", 260]
        ),
    },
    "tokenizer describe": {
        "--source": (
            "text", lambda w: ["--source", w / "text.txt", "--tokenizer", w / "tokenizer"]
        ),
        "--tokenizer": (
            "tokenizer", lambda w: ["--source", w / "text.txt", "--tokenizer", w / "tokenizer"]
        ),
    },
}  # fmt: skip
READS_NO_FILE_OF_OTHERS = {"lm-eval"}  # it hands all over to the harness


def solving(world: Path) -> list[Any]:
    """Few tokens: a model writes and the judge runs what it wrote when nothing is refused."""
    return [
        *("--model", world / "llama", "--suite", "mbpp", "--split", "all"),
        *("--max-new-tokens", 2, "--problems", world / "problems.jsonl", *OUT),
    ]


def judged(world: Path) -> list[Any]:
    return [world / "samples.jsonl", "--problems", world / "problems.jsonl"]


def verified(world: Path) -> list[Any]:
    """Few tokens: an engine is run when nothing is refused."""
    return ["--model", world / "llama", "--export", world / "export", "--new-tokens", 2]


def rewarded(world: Path) -> Path:
    """Documents with rewards, in groups."""
    path = world / "rewarded.jsonl"
    rows = [{"text": f"x = {i} + {i}\n", "reward": i % 2, "group": "g"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# what is done to it -------------------------------------------------------------------------------


class Touch:
    """What a pickle does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def canary(path: Path) -> Path:
    """Where the canary would be, seen from any file of the world."""
    while path.name != "world":
        path = path.parent
    return path / CANARY


def as_pickle(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(pickle.dumps(Touch(canary(path))))


def as_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def as_circle(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def as_sparse(path: Path) -> None:
    """Terabytes that take no room."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 41)


def content(data: bytes | str) -> Change:
    def change(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return change


NO_FILES: dict[str, Change] = {
    "pipe": as_pipe, "device": as_device, "circle": as_circle, "folder": as_folder,
    "sparse": as_sparse, "pickle": as_pickle,
}  # fmt: skip
BAD_JSON: dict[str, Change] = {
    **NO_FILES,
    "empty": content(""),
    "deep": content('{"a":' * 200_000),
    "deep list": content("[" * 200_000),
    "not UTF-8": content(b'{"a": "\xff"}'),
    "a list": content("[]"),
    "null": content("null"),
    "digits": content('{"a": ' + "9" * 5000 + "}"),
}


def at(name: str, change: Change) -> Change:
    """The change, of a file in a folder."""
    return lambda folder: change(folder / name)


def keys(name: str, **values: Any) -> Change:
    """Other values for some keys of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def together(*changes: Change) -> Change:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of safetensors, with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def long_header(path: Path) -> None:
    """A header as long as the library still takes, of which nothing is there to read."""
    path.unlink()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{")
        file.truncate(100_000_000)


BAD_TENSORS: dict[str, Change] = {
    **NO_FILES,
    "empty": content(b""),
    "three bytes": content(b"\x00\x00\x00"),
    "header of 2^63": content(tensors({}, length=1 << 63)),
    "header of 2^64 - 1": content(tensors({}, length=(1 << 64) - 1)),
    "header of 100 MB": long_header,
    "header cut": content(tensors({"a": one()})[:20]),
    "header no JSON": content(tensors(b"{'a': 1}")),
    "header deep": content(tensors(b'{"a":' * 100_000)),
    "header a list": content(tensors(b"[]")),
    "negative offset": content(tensors({"a": one(offsets=(-4, 0))}, b"0000")),
    "end before begin": content(tensors({"a": one(offsets=(4, 0))}, b"0000")),
    "overlap": content(tensors({"a": one(), "b": one(offsets=(2, 6))}, b"000000")),
    "hole": content(tensors({"a": one(), "b": one(offsets=(8, 12))}, b"0" * 12)),
    "outside": content(tensors({"a": one(offsets=(0, 1 << 40))}, b"0000")),
    "huge shape": content(tensors({"a": one(shape=(1 << 62, 1 << 62))}, b"0000")),
    "negative shape": content(tensors({"a": one(shape=(-1,))}, b"0000")),
    "no such dtype": content(tensors({"a": one("F99")}, b"0000")),
    "no shape": content(tensors({"a": {"dtype": "F32"}}, b"0000")),
    "trailing bytes": content(tensors({"a": one()}, b"0000" + b"x" * 9)),
    "a name twice": content(
        tensors(b'{"a":%b,"a":%b}' % ((json.dumps(one()).encode(),) * 2), b"0000")
    ),
    "other names": content(tensors({"../../a": one()}, b"0000")),
    "integers": content(tensors({"a": one("I64", offsets=(0, 8))}, b"0" * 8)),
}
INDEX = "model.safetensors.index.json"


def only_pickled(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        as_pickle(folder / name)

    return change


def indexed(weight_map: Any, beside: Change = lambda folder: None) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "moved.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        beside(folder)

    return change


def brings_code(folder: Path) -> None:
    """Code beside the model, named in every way that transformers knows."""
    path = canary(folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(path)!r})\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer",
             "AutoModelForSequenceClassification")  # fmt: skip
    keys("config.json", auto_map=dict.fromkeys(names, "evil.Evil"))(folder)
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate/generate.py")


def of_config(changes: dict[str, dict[str, Any]]) -> dict[str, Change]:
    return {f"config {name}": keys("config.json", **values) for name, values in changes.items()}


BAD_SIZES = {
    "hidden 1e12": {"hidden_size": 10**12},
    "hidden as 1e12": {"hidden_size": 1e12},
    "hidden -8": {"hidden_size": -8},
    "hidden 0": {"hidden_size": 0},
    "hidden a word": {"hidden_size": "wide"},
    "hidden infinite": {"hidden_size": float("inf")},
    "hidden a list": {"hidden_size": [16]},
    "layers 1e9": {"num_hidden_layers": 10**9},
    "layers 999": {"num_hidden_layers": 999},
    "layers 0": {"num_hidden_layers": 0},
    "vocabulary 1e12": {"vocab_size": 10**12},
    "a model of petabytes": {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "head_dim": 8},
    "intermediate 1e12": {"intermediate_size": 10**12},
    "heads 0": {"num_attention_heads": 0},
    "heads 3": {"num_attention_heads": 3},
    "head_dim 1e9": {"head_dim": 10**9},
    "positions 1e30": {"max_position_embeddings": 10**30},
    "epsilon NaN": {"rms_norm_eps": float("nan")},
    "theta a word": {"rope_theta": "x", "rope_parameters": None},
    "rope a list": {"rope_parameters": [], "rope_scaling": [1]},
    "family a list": {"model_type": ["llama"]},
    "family unknown": {"model_type": "of_tomorrow"},
    "family none": {"model_type": None},
    "quantized": {"quantization_config": {"quant_method": "awq"}},
    "heads of ours 1e9": {"mtp_config": {"kind": "parallel", "horizon": 10**9}},
    "heads of ours a list": {"mtp_config": [1]},
    "eos nested": {"eos_token_id": [[[1]]]},
}


def without_config(folder: Path) -> None:
    """Then it is taken for Meta's layout, if there is ``params.json``."""
    (folder / "config.json").unlink()


BAD_MODELS: dict[str, Change] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    **{f"config {name}": at("config.json", change) for name, change in BAD_JSON.items()},
    **of_config(BAD_SIZES),
    "code of its own": together(brings_code, keys("config.json", model_type="evil")),
    **{f"pickled {end}": only_pickled(f"pytorch_model{end}") for end in PICKLES},
    **{f"params {n}": together(without_config, at("params.json", c)) for n, c in BAD_JSON.items()},
    **{f"weights {n}": at("model.safetensors", change) for n, change in BAD_TENSORS.items()},
    "index above": indexed({"a": "../moved.safetensors"}),
    "index absolute": indexed({"a": "/etc/hostname"}),
    "index of pickles": indexed({"a": "w.bin"}, at("w.bin", as_pickle)),
    "index of a pipe": indexed({"a": "w.safetensors"}, at("w.safetensors", as_pipe)),
    "index of a device": indexed({"a": "w.safetensors"}, at("w.safetensors", as_device)),
    "index of a folder": indexed({"a": "w.safetensors"}, at("w.safetensors", as_folder)),
    "index a list": indexed([1]),
    "index of numbers": indexed({"a": 1}),
    "index NUL": indexed({"a": "w\0.safetensors"}),
    **{f"index {n}": together(indexed({}), at(INDEX, change)) for n, change in BAD_JSON.items()},
}
BAD_GPT2: dict[str, Change] = {
    **of_config(
        {
            "width 1e12": {"n_embd": 10**12},
            "width -16": {"n_embd": -16},
            "width a word": {"n_embd": "wide"},
            "layers 1e9": {"n_layer": 10**9},
            "layers 200": {"n_layer": 200},
            "vocabulary 1e12": {"vocab_size": 10**12},
            "positions 1e12": {"n_positions": 10**12},
            "positions 1e15": {"n_positions": 10**15},
            "heads 0": {"n_head": 0},
            "activation": {"activation_function": "os.system"},
            "quantized": {"quantization_config": {"quant_method": "bitsandbytes"}},
            "attention of the hub": {"attn_implementation": "evil/kernel"},
            "nested attention": {"text_config": {"_attn_implementation": "evil/kernel"}},
        }
    ),
    "adapter": at("adapter_config.json", content('{"base_model_name_or_path": "evil/model"}')),
    "adapter a pipe": at("adapter_config.json", as_pipe),
    "code of its own": together(brings_code, keys("config.json", model_type="evil")),
    "code and a known family": together(brings_code, keys("config.json", n_embd=8)),
    **{f"generation {n}": at("generation_config.json", c) for n, c in NO_FILES.items()
       if n not in ("circle", "folder")},
    **{f"pickled {end}": only_pickled(f"pytorch_model{end}") for end in PICKLES},
    **{f"weights {n}": at("model.safetensors", change) for n, change in BAD_TENSORS.items()},
}  # fmt: skip


def of_tokenizer(**values: Any) -> Change:
    return keys("tokenizer.json", **values)


BAD_TOKENIZERS: dict[str, Change] = {
    "none": lambda folder: (folder / "tokenizer.json").unlink(),
    **{f"file {name}": at("tokenizer.json", change) for name, change in BAD_JSON.items()},
    **{f"config {name}": at("tokenizer_config.json", c) for name, c in BAD_JSON.items()
       if name not in ("pipe", "device", "circle", "folder")},  # as if it were not there
    "{}": at("tokenizer.json", content("{}")),
    "version 9": of_tokenizer(version="9.9"),
    "no model": of_tokenizer(model=None),
    "a model of the future": of_tokenizer(model={"type": "Oracle"}),
    "no vocabulary": of_tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}),
    "id -1": of_tokenizer(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
    "id 2^31": of_tokenizer(
        model={"type": "BPE", "vocab": {"a": 2**31}, "merges": []}, pre_tokenizer=None
    ),
    "id 2^64": of_tokenizer(model={"type": "BPE", "vocab": {"a": 2**64}, "merges": []}),
    "merges of nothing": of_tokenizer(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}
    ),
    "a broken pattern": of_tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                       "invert": False}
    ),
    "no post-processor": of_tokenizer(post_processor={"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "gone", "type_id": 0}}], "pair": [], "special_tokens": {}}),
    "eos of another": at("tokenizer_config.json", content('{"eos_token": 3}')),
}  # fmt: skip

BAD_TEXTS: dict[str, Change] = {n: c for n, c in NO_FILES.items() if n not in ("sparse", "folder")}
BAD_TEXTS |= {"an empty folder": as_folder, "nothing": lambda path: path.unlink()}

BAD_LINES: dict[str, Change] = {
    **BAD_JSON,
    "no keys": content("{}"),
    "other types": content(
        '{"task_id": 1, "completion": 3, "text": "", "code": [], "test_list": 1}'
    ),
    "surrogate": content('{"task_id": "\\ud800", "completion": "", "prompt": "\\ud800"}'),
    "no such problem": content('{"task_id": "\\u001b[2J", "completion": ""}'),
}

BAD_SETTINGS: dict[str, Change] = {
    **NO_FILES,
    "an object": content("run: !!python/object/apply:os.mkdir [canary]\n"),
    "a bomb": content("a: &a [x]\n" + "".join(f"a{i}: &a{i} [*a, *a]\n" for i in range(3))
                      + "b: &b {x: *b, y: *b}\n"),
    "deep": content("a: " + "[" * 5000),
}  # fmt: skip


def manifest(**values: Any) -> Change:
    return keys("manifest.json", **values)


BAD_SHARDS: dict[str, Change] = {
    **{f"manifest {name}": at("manifest.json", c) for name, c in BAD_JSON.items()},
    "tokens 1e15": manifest(tokens=10**15),
    "tokens -1": manifest(tokens=-1),
    "documents 1e15": manifest(documents=10**15),
    "dtype object": manifest(dtype="object"),
    "version 99": manifest(version=99),
    "a column above": manifest(columns=["../../text"]),
    "a column that is not there": manifest(columns=["wanted"]),
    **{f"tokens {n}": at("tokens.bin", c) for n, c in NO_FILES.items()},
    **{f"ends {n}": at("docs.idx", c) for n, c in NO_FILES.items()},
    "ends that fall": at("docs.idx", lambda p: p.write_bytes(b"\xff" * p.stat().st_size)),
}
BAD_VALUE_HEADS: dict[str, Change] = {
    "no facts": lambda folder: (folder / "value_head.json").unlink(),
    **{f"facts {n}": at("value_head.json", c) for n, c in BAD_JSON.items()},
    "width 1e12": keys("value_head.json", hidden_size=10**12),
    "no weights": lambda folder: (folder / "value_head.safetensors").unlink(),
    **{f"weights {n}": at("value_head.safetensors", c) for n, c in BAD_TENSORS.items()},
    "pickled": together(lambda f: (f / "value_head.safetensors").unlink(),
                        at("value_head.pt", as_pickle)),
}  # fmt: skip
BAD_CHECKPOINTS: dict[str, Change] = {
    **{f"manifest {n}": at("manifest.json", c) for n, c in BAD_JSON.items()},
    "a file above": manifest(files={"../../../text.txt": {"bytes": 1, "sha256": ""}}),
    "an absolute file": manifest(files={"/etc/hostname": {"bytes": 1, "sha256": ""}}),
    "one more file": at("evil.py", content("x = 1")),
    "a link out": at("more.txt", as_device),
    **{f"weights {n}": at("model.safetensors", c) for n, c in BAD_TENSORS.items()},
    "a pickle": lambda folder: (shutil.rmtree(folder), as_pickle(folder))[0],
}
BAD_RUNS = {
    **{n: at("checkpoints/step-00000001", c) for n, c in BAD_CHECKPOINTS.items()},
    "no run": shutil.rmtree,
    "a file": lambda folder: (shutil.rmtree(folder), as_pickle(folder))[0],
}
PLACES = {
    "settings": ("settings.yaml", BAD_SETTINGS),
    "model": ("llama", BAD_MODELS | BAD_TOKENIZERS),
    "export": ("export", BAD_MODELS | BAD_TOKENIZERS),
    "gpt2": ("gpt2", BAD_GPT2),
    "rm": ("rm", BAD_GPT2),
    "tokenizer": ("tokenizer", BAD_TOKENIZERS),
    "text": ("text.txt", BAD_TEXTS),
    "samples": ("samples.jsonl", BAD_LINES),
    "problems": ("problems.jsonl", BAD_LINES),
    "format": ("format.yaml", BAD_SETTINGS | {"no place": content("template: x\n")}),
    "shards": ("shards", BAD_SHARDS),
    "sources": (
        "sources.yaml",
        BAD_SETTINGS
        | {
            "nothing": content("sources: []\n"),
            "other types": content("sources: [1]\ndecontaminate: {a: 1}\nseed: x\n"),
            "no such format": content("sources: [{name: a, paths: [raw.jsonl], format: pickle}]"),
            "no license": content("sources: [{name: a, paths: [raw.jsonl], format: jsonl}]"),
            "a name above": content(
                "sources: [{name: ../a, paths: [raw.jsonl], format: text, license: x}]"
            ),
        },
    ),
    "raw": (
        "raw.jsonl",
        {n: c for n, c in BAD_LINES.items() if n != "sparse"} | {"nothing": lambda p: p.unlink()},
    ),
    "questions": (
        "questions.json",
        {n: c for n, c in BAD_JSON.items() if n not in ("sparse", "a list", "null", "empty")},
    ),
    "value_head": ("value_head", BAD_VALUE_HEADS),
    "checkpoint": ("run/checkpoints/step-00000001", BAD_CHECKPOINTS),
    "run": ("run", BAD_RUNS),
    "run.yaml": ("tracked/run.yaml", BAD_SETTINGS),
    "report": ("report.json", BAD_JSON),
    "evaluation": (
        "compared/evaluation.json",
        BAD_JSON
        | {
            "no list": content('{"perplexity": {"each": {"a": 1}}}'),
            "text for numbers": content('{"perplexity": {"each": [["a", "b", "c"]]}}'),
            "nothing counted": content('{"heads": {"each": {"h": {"nats": [], "targets": []}}}}'),
            "no tries": content('{"mbpp": {"problems": [{"task_id": 1, "n": 0, "c": 0}]}}'),
        },
    ),
    "compared run.yaml": ("compared/run.yaml", BAD_SETTINGS),
    "compared metrics": (
        "compared/metrics.jsonl",
        {"a device": as_device, "a folder": as_folder},
    ),
    "metrics": ("tracked/metrics.jsonl", {"a device": as_device, "a folder": as_folder}),
}
FIRST_OF_ITS_KIND = {
    ("evaluate", "model"), ("evaluate", "gpt2"), ("data inspect", "shards"), ("average", "run"),
    ("data prepare", "tokenizer"), ("data prepare", "text"), ("train", "value_head"),
    ("train", "settings"), ("train", "checkpoint"), ("judge", "samples"), ("judge", "problems"),
    ("data prepare", "sources"), ("data prepare", "questions"),
}  # fmt: skip
"""Where everything is tried; elsewhere a few of each kind, to see that the reader is the same."""


SLOT_NAMES = [(command, slot) for command, slots in SLOTS.items() for slot in slots]


def changes_for(command: str, kind: str) -> dict[str, Change]:
    changes = PLACES[kind][1]
    if (command, kind) in FIRST_OF_ITS_KIND:
        return changes
    return dict(list(changes.items())[:: max(1, len(changes) // 5)])


@pytest.mark.parametrize(("command", "slot"), SLOT_NAMES)
def test_it_is_refused_and_nothing_runs(
    good: Path, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str, slot: str,
) -> None:  # fmt: skip
    """All that a slot may be given, one after the other, so that the world is copied once."""
    monkeypatch.chdir(world)
    kind, arguments = SLOTS[command][slot]
    typed = arguments(world)
    place = PLACES[kind][0]
    wrong = []
    for name, change in changes_for(command, kind).items():
        restore(good / place, world / place)
        change(world / place)
        started = time.monotonic()
        code = run(*command.split(), *typed)
        seconds = time.monotonic() - started
        told = capsys.readouterr().err
        last = told.rstrip("\n").rpartition("\n")[2]
        if code != 2 or "Traceback" in told or not last.startswith("error: ") or len(last) > 600:
            wrong.append(f"{name}: exit {code}: {told}")
        if (world / place).name not in told and "this machine has" not in told:
            wrong.append(f"{name}: not about {place}: {told}")
        if (world / CANARY).exists():
            wrong.append(f"{name}: something ran")
        if seconds > 20:  # each takes milliseconds, on a machine that has nothing else to do
            wrong.append(f"{name}: {seconds:.1f} s")
    assert not wrong, "\n".join(wrong)


def restore(good: Path, place: Path) -> None:
    """Put back what the case before this one has spoilt."""
    for path in (place, *place.parent.glob("moved.safetensors")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if good.is_dir():
        shutil.copytree(good, place)
    elif good.exists():
        shutil.copy(good, place)


@pytest.mark.parametrize(("command", "slot"), SLOT_NAMES)
def test_what_is_not_hostile_is_taken(
    world: Path, monkeypatch: pytest.MonkeyPatch, command: str, slot: str
) -> None:
    """Else every refusal above might be of something else."""
    if slot == "--resume":
        pytest.skip("needs a trained run: tests/end_to_end")
    monkeypatch.chdir(world)
    kind, arguments = SLOTS[command][slot]
    typed = arguments(world)
    if kind == "settings":
        files = settings(world, {"models": {"ref": str(world / "llama")}}, from_scratch(world))
        source = files[3] if slot == "--recipe" else files[1]
        shutil.copy(source, world / "settings.yaml")
        if slot == "--recipe":
            typed += files[:2]
    assert run(*command.split(), *typed) == 0


def names_of(app: typer.Typer, prefix: str = "") -> Iterator[str]:
    """What can be typed, groups gone into."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield prefix + (command.name or command.callback.__name__.replace("_", "-"))
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from names_of(group.typer_instance, f"{prefix}{group.name} ")


def test_every_command_has_its_rows() -> None:
    found = set(names_of(cli.app))
    assert found == SLOTS.keys() | READS_NO_FILE_OF_OTHERS


# the settings that keep code out ------------------------------------------------------------------

LOADERS = {"from_pretrained", "from_config", "load_dataset"}


def loading_calls() -> Iterator[tuple[str, ast.Call]]:
    package = Path(wmtp.__file__).parent
    scripts = package.parents[1] / "scripts"
    for path in (*package.rglob("*.py"), *scripts.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_method and node.func.attr in LOADERS:
                yield f"{path.name}:{node.lineno}", node


def test_remote_code_is_forbidden_in_every_call_that_could_run_it() -> None:
    calls = list(loading_calls())
    assert len(calls) >= 4
    for place, call in calls:
        given = {word.arg: word.value for word in call.keywords}
        value = given.get("trust_remote_code")
        assert isinstance(value, ast.Constant), f"{place} does not say trust_remote_code=False"
        assert value.value is False, place


def test_weights_are_read_from_safetensors_only() -> None:
    """All but the script that reads SmolLM2 from a file of GGUF with a known hash."""
    for place, call in loading_calls():
        name = ast.unparse(call.func)
        if name.endswith("from_pretrained") and "Config" not in name and "Tokenizer" not in name:
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("use_safetensors") == "True" or "smollm2" in place, place


def test_a_pickle_that_is_opened_would_be_noticed(world: Path) -> None:
    as_pickle(world / "text.txt")
    pickle.loads((world / "text.txt").read_bytes())
    assert (world / CANARY).is_dir()
