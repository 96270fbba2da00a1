"""What takes seconds is done once, whatever the number of workers that run these tests."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from filelock import FileLock

Once = Callable[[str, Callable[[], Any]], Any]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """``once(name, make)``: what ``make()`` gives, as JSON keeps it, made by one worker."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent

    def make_once(name: str, make: Callable[[], Any]) -> Any:
        file = folder / f"{name}.json"
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                file.write_text(json.dumps(make()))
        return json.loads(file.read_text())

    return make_once
