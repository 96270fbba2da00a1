"""A model is a directory first, then a name of the hub; a miss says what would help."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from wmtp.errors import ConfigError
from wmtp.opening.model_names import fetch_model, model_directory


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    fetch_model.cache_clear()


def hub_that(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    asked: list[str] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append(name)
        assert not any(pattern in ("*.bin", "*.py", "*") for pattern in options["allow_patterns"])
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_local_directory_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_that(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert model_directory("org/name") == Path("org/name")
    assert model_directory(f"file://{tmp_path}") == tmp_path
    assert model_directory("./no/such") == Path("./no/such")
    assert model_directory("org/typo") == Path("org/typo")  # the folder org is here
    assert asked == []


def test_the_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_that(monkeypatch, tmp_path)
    assert model_directory("someorg/some-model") == tmp_path
    assert model_directory("someorg/some-model") == tmp_path
    assert asked == ["someorg/some-model"]


@pytest.mark.parametrize(
    ("answer", "offline", "message"),
    [
        (LocalEntryNotFoundError("x"), "1", "HF_HUB_OFFLINE is set"),
        (LocalEntryNotFoundError("x"), "", "cannot be reached"),
        (OSError("no route"), "", "cannot be reached"),
    ],
)
def test_without_network_it_says_what_would_help(
    answer: Exception, offline: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    hub_that(monkeypatch, answer)
    with pytest.raises(ConfigError, match=message):
        model_directory("someorg/some-model")


def test_a_private_model_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    hub_that(monkeypatch, error)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        model_directory("someorg/some-model")
