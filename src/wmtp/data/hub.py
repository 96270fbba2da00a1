"""Data sets of the Hugging Face hub, fetched once and kept as JSONL.

    <WMTP_CACHE, else ~/.cache/wmtp>/hub/ORG--NAME[--CONFIG]/train.jsonl, test.jsonl, ...

One file for each split that the hub has. A folder made by hand in this place serves as well.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wmtp.data.splits import Split
from wmtp.errors import DataError
from wmtp.runtime.durable import storage_errors, sync_file, sync_folder, temporary_beside

Rows = Iterable[Mapping[str, Any]]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", re.ASCII)
_FILE_SUFFIXES = (".csv", ".gz", ".json", ".jsonl", ".md", ".parquet", ".py", ".txt", ".xz", ".zip")
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_OTHER_NAMES_OF_VALIDATION = ("valid", "val", "dev")


def is_hub_name(path: str) -> bool:
    """Whether a path that is not there may be ``ORG/NAME`` or ``ORG/NAME:CONFIG`` of the hub.

    A name that ends like a file, or begins with a folder of this machine, is a mistyped path.

    Example:
        >>> is_hub_name("google-research-datasets/mbpp:full"), is_hub_name("corpora/mbpp.jsonl")
        (True, False)
    """
    return (
        _NAME.fullmatch(path) is not None
        and not path.lower().endswith(_FILE_SUFFIXES)
        and not Path(path).parent.exists()
    )


def hub_folder(name: str) -> Path:
    """Where a data set of the hub is kept."""
    root = os.environ.get("WMTP_CACHE") or Path.home() / ".cache" / "wmtp"
    return Path(root) / "hub" / name.replace("/", "--").replace(":", "--")


def is_to_be_fetched(path: str) -> bool:
    """Whether a source will be asked for over the network."""
    return not Path(path).exists() and is_hub_name(path) and not hub_folder(path).is_dir()


def fetch_dataset(name: str) -> Path:
    """The folder of a data set of the hub, fetched now unless it is there.

    Raises:
        DataError: it is not there and cannot be fetched; says what would help.
        StorageError: it could not be written; nothing of it is left.
    """
    folder = hub_folder(name)
    if folder.is_dir():
        return folder
    splits = load_splits(name)
    temporary = temporary_beside(folder)
    with storage_errors(f"data set {folder} could not be written"):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for split, rows in splits.items():
                _write_rows(temporary / f"{_file_name(split)}.jsonl", rows)
            sync_folder(temporary)
            temporary.replace(folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (isinstance(error, OSError) and folder.is_dir()):  # another process was faster
                raise
        sync_folder(folder.parent)
    return folder


def files_of_split(
    name: str, files: tuple[Path, ...], split: Split
) -> tuple[tuple[Path, ...], Split]:
    """Which of the hub's files make up a split, and the split that is left to be made in them.

    Where the hub has its own validation, its splits are used. Where it has none, training and
    validation are divided here, and neither has anything of the hub's test.

    Raises:
        DataError: there is no such split.
    """
    by_name = {file.stem: file for file in files}
    if split == "all":
        return files, "all"
    if split in by_name and (split != "train" or "validation" in by_name):
        return (by_name[split],), "all"
    rest = tuple(file for stem, file in by_name.items() if stem not in ("test", "prompt"))
    if split in ("train", "validation") and "validation" not in by_name and rest:
        return ((by_name["train"],) if "train" in by_name else rest), split
    raise DataError(
        f"data source '{name}': split is '{split}', but the hub has {', '.join(by_name)}."
    )


def load_splits(name: str) -> Mapping[str, Rows]:
    """The rows of each split, through the library ``datasets`` and its own cache.

    Raises:
        DataError: the library or the data set is missing, or the hub cannot be reached.
    """
    missing = f"data source '{name}': no such file or folder here"
    by_hand = f"put its rows into {hub_folder(name)}/train.jsonl"
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{missing}, and asking the Hugging Face hub for it needs the package datasets. "
            "Install it with: pip install 'wmtp[hub]'."
        ) from error
    repository, _, config = name.partition(":")
    try:
        return dict(datasets.load_dataset(repository, config or None, trust_remote_code=False))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{missing}, and the Hugging Face hub does not give it: {_first_line(error)} If it is "
            "private or gated, ask for access on its page and set HF_TOKEN."
        ) from error
    except ConnectionError as error:
        offline = _offline_variable()
        if offline:
            raise DataError(
                f"{missing}, and {offline} is set, so the Hugging Face hub is not asked for it. "
                f"Unset {offline}, or {by_hand}."
            ) from error
        raise DataError(
            f"{missing}, and the Hugging Face hub cannot be reached: {_first_line(error)} Check "
            f"the network (HTTPS_PROXY, HF_ENDPOINT), or {by_hand}."
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{missing}, and the package datasets cannot read it from the Hugging Face hub: "
            f"{_first_line(error)} A configuration is chosen with {repository}:CONFIG."
        ) from error


def _offline_variable() -> str | None:
    """The variable that forbids asking the hub, if one is set."""
    for variable in _OFFLINE_VARIABLES:
        if os.environ.get(variable, "").upper() not in ("", "0", "NO", "OFF", "FALSE"):
            return variable
    return None


def _file_name(split: str) -> str:
    return "validation" if split in _OTHER_NAMES_OF_VALIDATION else split


def _write_rows(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="ascii") as file:
        for row in rows:
            # dates and the like are kept as text: no reader of ours asks for them
            file.write(json.dumps(row, default=str) + "\n")
    sync_file(path)


def _first_line(error: Exception) -> str:
    """What a library says, on one line and with a full stop."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text if text.endswith(".") else f"{text}."
