"""The importance of every target. One file per algorithm; the table below names them."""

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import get_args

from wmtp.errors import ConfigError
from wmtp.loss import Scope
from wmtp.weighting.base import (
    Need,
    Signals,
    Weighting,
    mean_one,
    observe,
    remember,
    weigh_chunk,
)
from wmtp.weighting.baseline import Baseline
from wmtp.weighting.column import Column
from wmtp.weighting.controls import RandomMatched, Shuffled
from wmtp.weighting.critic import Critic
from wmtp.weighting.rho1 import Rho1

ALGORITHMS: dict[str, type[Weighting]] = {
    kind.algorithm: kind for kind in (Baseline, Rho1, Critic, Column, Shuffled, RandomMatched)
}

__all__ = [
    "ALGORITHMS",
    "Baseline",
    "Column",
    "Critic",
    "Need",
    "RandomMatched",
    "Rho1",
    "Scope",
    "Shuffled",
    "Signals",
    "Weighting",
    "find_critic",
    "find_weighting",
    "mean_one",
    "observe",
    "remember",
    "weigh_chunk",
]


def find_weighting(
    algorithm: str, folder: Path | None = None, *, key: str = "weighting.algorithm"
) -> type[Weighting]:
    """Return the class of a shipped algorithm, or of the one in a user's own ``.py`` file.

    Args:
        algorithm: a name from ``ALGORITHMS``, or the path of a ``.py`` file, looked up from the
            working directory first, then from ``folder``.
        folder: where the recipe lies.
        key: how messages call the name.

    Raises:
        ConfigError: no such algorithm or file, or the file does not define exactly one.
    """
    if algorithm in ALGORITHMS:
        return ALGORITHMS[algorithm]
    if algorithm.endswith(".py"):
        return _load_file(algorithm, folder, key)
    raise ConfigError(
        f"{key} is {algorithm!r}: no such algorithm. "
        f"Use {', '.join(sorted(ALGORITHMS))}, or the path of a .py file of your own."
    )


def find_critic(weighting: Weighting) -> Critic | None:
    """The ``critic-wmtp`` that a weighting is or is around, None if there is none."""
    while isinstance(weighting, Shuffled | RandomMatched):
        weighting = weighting.around
    return weighting if isinstance(weighting, Critic) else None


def _load_file(name: str, folder: Path | None, key: str) -> type[Weighting]:
    places = [Path(name)] if folder is None else [Path(name), folder / name]
    path = next((place.resolve() for place in places if place.is_file()), None)
    if path is None:
        tried = " and ".join(str(place) for place in dict.fromkeys(places))
        raise ConfigError(f"{key} is {name!r}: no such file (tried {tried}).")
    # the path is in the module's name, so that two files called mine.py do not meet
    module_name = f"wmtp_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may fail in any way; it is named and passed on
        raise ConfigError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Weighting)
        and value.__module__ == module_name
    ]
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found) or "none"
        raise ConfigError(f"{path} must define exactly one subclass of Weighting; found {names}.")
    if inspect.isabstract(found[0]) or "scope" not in dir(found[0]):
        raise ConfigError(
            f"{path}: {found[0].__name__} must have a scope ({', '.join(get_args(Scope))}) and a "
            "method weights(signals)."
        )
    found[0].algorithm = name
    return found[0]
