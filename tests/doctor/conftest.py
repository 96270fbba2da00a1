"""The small world of ``trial.py``, and one run in it that checks may look at."""

from pathlib import Path

import pytest

from wmtp.doctor.training import Trained, quiet_console, train_whole
from wmtp.job import assembled
from wmtp.trial import trial_settings, write_data


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-world")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def trained(small_world: Path) -> Trained:
    """Ten steps of the baseline, tracked by MLflow; its model is the reference of rho1."""
    settings = trial_settings(small_world, backend="cpu", mlflow=True)
    with quiet_console() as console, assembled(settings, console.log) as job:
        return train_whole(job, small_world, console)
