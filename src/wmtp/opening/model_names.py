"""From what a user calls a model to its directory: a path, or a name of the Hugging Face hub."""

import os
from functools import cache
from pathlib import Path

from wmtp.data.hub import is_hub_name
from wmtp.errors import ConfigError

WANTED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Config, weights and tokenizer; never a pickle, never code."""


def model_directory(name: str) -> Path:
    """The directory of a model: a local one first, else the hub's, fetched into its own cache.

    Raises:
        ConfigError: it is no directory, and the hub does not give it; says what would help.
    """
    path = Path(name.removeprefix("file://"))
    return path if path.exists() or not is_hub_name(name) else fetch_model(name)


@cache
def fetch_model(name: str) -> Path:
    """A model of the hub as a directory of this machine.

    Raises:
        ConfigError: the hub cannot be reached, or does not give it.
    """
    # the library takes a second to import, and a local model needs none of it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    missing = f"model '{name}': no such directory here"
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED_FILES)))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise ConfigError(
            f"{missing}, and the Hugging Face hub does not give it. If it is private or gated, ask "
            "for access on its page and set HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if os.environ.get("HF_HUB_OFFLINE"):
            raise ConfigError(
                f"{missing}, and HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked for "
                "it. Unset HF_HUB_OFFLINE, or name a local directory."
            ) from error
        raise ConfigError(
            f"{missing}, and the Hugging Face hub cannot be reached. Check the network "
            "(HTTPS_PROXY, HF_ENDPOINT), or name a local directory."
        ) from error
