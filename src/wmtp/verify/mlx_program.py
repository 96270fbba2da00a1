"""Run by the Python that has MLX: ``python mlx_program.py request.json``; knows nothing of wmtp.

It is started as a program of its own because mlx_lm changes limits of the process that imports it,
and because MLX may live in another environment. Numbers come back as ``.npy`` files beside the
request, all else as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

NOT_INSTALLED = 3


def main() -> None:
    """Answer a request: ids of strings, logits of rows, greedy texts."""
    request_file = Path(sys.argv[1])
    request = json.loads(request_file.read_text(encoding="utf-8"))
    try:
        import mlx.core as mx
        import mlx_lm
        import mlx_lm.generate  # bound by its last name below
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    mx.set_default_device(mx.cpu)
    model, tokenizer = mlx_lm.load(request["model"])
    answer: dict[str, Any] = {"versions": _versions()}
    answer["ids"] = [tokenizer.encode(text) for text in request["strings"]]
    if request["as_served"]:
        _write_logits(request_file.parent, "served", model, request["prompts"])
    model.set_dtype(mx.float32)
    _write_logits(request_file.parent, "rows", model, request["rows"])
    answer["texts"] = [_greedy(model, one, request["new_tokens"]) for one in request["prompts"]]
    (request_file.parent / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mlx", "mlx-lm")}


def _write_logits(folder: Path, name: str, model: Any, rows: list[list[int]]) -> None:
    import mlx.core as mx
    import numpy as np

    for number, ids in enumerate(rows):
        logits_SV = model(mx.array(ids)[None])[0].astype(mx.float32)
        np.save(folder / f"{name}-{number}.npy", np.array(logits_SV))


def _greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(prompt), model, max_tokens=count)
    return [*prompt, *(int(token) for token, _ in steps)]


if __name__ == "__main__":
    main()
