"""``wmtp export`` and ``wmtp verify-export`` as they are typed."""

import json
from pathlib import Path

import click
import pytest

from tests.export.toys import model_directory
from tests.verify.test_hugging_face import change_tensor
from wmtp import cli
from wmtp.cli.engines import _table
from wmtp.errors import CheckpointError, ConfigError, DataError
from wmtp.verify.check import Check


def run(*arguments: object) -> object:
    """The exit code, None for 0."""
    try:
        return cli.app([str(a) for a in arguments], standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code


def test_an_export_is_written_verified_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = model_directory(tmp_path / "model", horizon=2), tmp_path / "out"
    assert not run("export", "--model", source, "--to", "hf", "--out", out, "--dtype", "bf16")
    assert capsys.readouterr().out == f"{out}\n"
    (tmp_path / "prompts.txt").write_text("def add(a\n\nreturn b\n")
    verify = ("verify-export", "--model", source, "--export", out, "--new-tokens", 4)
    found = tmp_path / "found.json"
    assert not run(*verify, "--prompts", tmp_path / "prompts.txt", "--json", found)
    told = capsys.readouterr()
    assert told.out.count("ok  ") == 8
    assert "of 2, 4 new tokens each" in told.out
    assert "transformers: all 8 checks passed" in told.err
    change_tensor(out, "model.layers.2.eh_proj.weight", lambda x: x * 1.5)
    assert run(*verify, "--prompts", tmp_path / "prompts.txt", "--json", found) == 1
    told = capsys.readouterr()
    assert "FAIL  head 1's logits" in told.out
    assert "exceed their limit" in told.err
    result = json.loads(found.read_text())
    assert (result["engine"], result["passed"]) == ("transformers", False)
    assert result["checks"][0] == {
        "name": "tensors that differ", "found": 1, "limit": 0, "passed": False,
        "detail": "of 34 tensors, as bfloat16; model.layers.2.eh_proj.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "onnx"), "--to is 'onnx'. Use hf, mlx, gguf"),
        (("--to", "hf", "--dtype", "q8_0"), "--dtype is 'q8_0', which hf has not. Use f32"),
        (("--to", "hf", "--layout", "meta"), "--layout is 'meta'. Use hf or mtp_llama"),
        (("--to", "mlx", "--layout", "mtp_llama"), "which is for --to hf. Leave it out"),
        (("--to", "hf"), "no model directory"),
    ],
)
def test_a_wrong_option_of_export_is_named(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run("export", "--model", tmp_path, "--out", tmp_path / "out", *arguments)


def test_what_cannot_be_verified_is_refused(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    gguf, bad = tmp_path / "x.gguf", tmp_path / "bad.txt"
    gguf.write_bytes(b"GGUF")
    bad.write_bytes(b"\xff\xfe")
    verify = ("verify-export", "--model", source, "--export")
    for arguments, kind, message in (
        ((source, "--engine", "vllm"), ConfigError, "--engine is 'vllm'. Use transformers, mlx"),
        ((gguf, "--engine", "mlx"), ConfigError, "is a file: llama.cpp runs a file"),
        ((source, "--engine", "llama.cpp"), ConfigError, "is a folder: llama.cpp runs a file"),
        ((tmp_path / "none",), ConfigError, "no GGUF file and no directory with config.json"),
        ((source, "--python", "python3"), ConfigError, "--python is for mlx"),
        ((source, "--llama-cpp", tmp_path), ConfigError, "--llama-cpp is for llama.cpp"),
        ((source, "--prompts", tmp_path / "none"), DataError, "No such file"),
        ((source, "--prompts", bad), DataError, "which is no UTF-8 text"),
        ((model_directory(tmp_path / "other", num_layers=1),), CheckpointError, "num_layers is 1"),
    ):
        with pytest.raises(kind, match=message):
            run(*verify, *arguments)


def test_the_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    checks = [
        Check("trunk's logits", 2.51e-6, 1e-5, "229 positions, logits up to 42.6; transformers 5"),
        Check("head 1's logits", float("nan"), 1e-5),
    ]
    assert _table(checks) == [
        "ok    trunk's logits: 2.5e-06, limit",
        "      1e-05",
        "      229 positions, logits up to 42.6;",
        "      transformers 5",
        "FAIL  head 1's logits: nan, limit 1e-05",
    ]
