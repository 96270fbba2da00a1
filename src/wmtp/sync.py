"""Send a run to its trackers: what they were not sent while it trained, and the finished model."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wmtp.checkpoints.checkpoint import MANIFEST
from wmtp.config import Config, Run
from wmtp.config_files import read_yaml_file
from wmtp.errors import ConfigError, TrackerError
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import check_metrics_file
from wmtp.runtime.run_folder import RunFolder
from wmtp.secrets import HIDDEN, one_line
from wmtp.tracking.mlflow_destination import MlflowDestination, without_login
from wmtp.tracking.outbox import Outbox
from wmtp.tracking.tensorboard_destination import TensorboardDestination
from wmtp.tracking.trackers import Destination, RunStatus

_LOGIN_VARIABLES: Final = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Tracked:
    """What trackers are told of a run.

    Attributes:
        config: which trackers, and where they are.
        run: the run's tags.
        algorithm: what the recipe calls its weighting.
        settings: what is logged as parameters, as in ``run.yaml``.
    """

    config: Config
    run: Run
    algorithm: str
    settings: Mapping[str, Any]

    def destinations(self, folder: RunFolder) -> list[Destination]:
        """The trackers that the config asks for; connects to none.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.
        """
        chosen: list[Destination] = []
        if self.config.mlflow.enabled:
            chosen.append(self.mlflow(folder))
        if self.config.tensorboard.enabled:
            chosen.append(TensorboardDestination(folder))
        return chosen

    def mlflow(self, folder: RunFolder) -> MlflowDestination:
        """The run in MLflow; connects to nothing."""
        return MlflowDestination(
            folder,
            tracking_uri=self.config.mlflow.tracking_uri,
            experiment=self.config.mlflow.experiment,
            settings=self.settings,
            tags=dict.fromkeys(self.run.tags, "true") | {"algorithm": self.algorithm},
        )


def sync(folder: RunFolder, tracking_uri: str | None, report: Callable[[str], None]) -> None:
    """Send what each tracker of a run was not sent; the caller holds the run's lock.

    Args:
        folder: of the run.
        tracking_uri: MLflow's, instead of the one that the run began with.
        report: takes a line on each tracker.

    Raises:
        ConfigError: the run has no tracker, or its tracking URI lacks its login.
        DataError: ``metrics.jsonl`` is no ordinary file.
        TrackerError: a tracker did not take everything; the others were sent theirs.
    """
    tracked = read_tracked(folder, tracking_uri)
    destinations = tracked.destinations(folder)
    if not destinations:
        raise ConfigError(
            f"run '{folder.name}' has no tracker to send to: mlflow.enabled and "
            f"tensorboard.enabled are false in {folder.settings_file}."
        )
    check_metrics_file(folder.metrics_file)
    failures = []
    for destination in destinations:
        outbox = Outbox(folder, destination.name)
        if isinstance(destination, TensorboardDestination) and not outbox.count_unsent():
            report(f"{destination.name}: nothing to send")  # and no empty file
            continue
        try:
            report(f"{destination.name}: {_deliver(destination, outbox, tracked, folder)}")
        except Exception as error:  # whatever a tracker's library raises, the next one gets its own
            failures.append(
                f"{destination.name}: {one_line(error)}; {outbox.count_unsent()} metrics not sent, "
                f"kept in {folder.metrics_file}"
            )
    if failures:
        raise TrackerError("\n".join(failures))


def send_final_model(tracked: Tracked, folder: RunFolder, console: Console) -> None:
    """Store the finished model in MLflow if that is asked for; a failure is one warning."""
    if not _model_is_due(tracked, folder):
        return
    later = f"send it with: wmtp sync {folder.root}"
    destination = tracked.mlflow(folder)
    outbox = Outbox(folder, destination.name)
    if outbox.count_unsent():  # it was just found to be down
        console.warning(f"MLflow: {folder.final} not sent; {later}")
        return
    try:
        _deliver(destination, outbox, tracked, folder)
    except Exception as error:  # whatever MLflow or a storage library raises: the model is safe
        console.warning(f"MLflow: {folder.final} not sent: {one_line(error)}; {later}")


def read_tracked(folder: RunFolder, tracking_uri: str | None) -> Tracked:
    """Read from ``run.yaml`` what its trackers were told.

    Raises:
        ConfigError: the file is missing or no run's, or the tracking URI lacks its login.
    """
    settings = read_yaml_file(str(folder.settings_file)).values
    try:
        config = Config.model_validate(settings["config"])
        run = Run.model_validate(settings["recipe"]["run"])
        algorithm = str(settings["recipe"]["weighting"]["algorithm"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder.settings_file} is not the run.yaml of a run.") from error
    uri = tracking_uri or config.mlflow.tracking_uri
    if uri is not None and HIDDEN in uri:
        uri = without_login(uri)
        if HIDDEN in uri or not any(name in os.environ for name in _LOGIN_VARIABLES):
            raise ConfigError(
                f"{folder.settings_file} does not keep the login of mlflow.tracking_uri. Export "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or give --tracking-uri."
            )
    mlflow = config.mlflow.model_copy(update={"tracking_uri": uri})
    return Tracked(config.model_copy(update={"mlflow": mlflow}), run, algorithm, settings)


def _deliver(destination: Destination, outbox: Outbox, tracked: Tracked, folder: RunFolder) -> str:
    """Send everything that is due to one tracker; what was sent, in words."""
    if destination.connect():
        outbox.start_anew()
        _sent_model_file(folder).unlink(missing_ok=True)
    words = f"{outbox.send(destination.send)} metrics sent"
    if isinstance(destination, MlflowDestination) and _model_is_due(tracked, folder):
        _send_model(destination, folder)
        words += f", and {folder.final}"
    destination.close(_status_of(folder))
    return words


def _status_of(folder: RunFolder) -> RunStatus:
    """How the run ended; one that could not say was killed."""
    try:
        said = folder.status_file.read_text().strip()
    except FileNotFoundError:
        return "KILLED"
    return "FINISHED" if said == "FINISHED" else "FAILED" if said == "FAILED" else "KILLED"


def _model_is_due(tracked: Tracked, folder: RunFolder) -> bool:
    mlflow = tracked.config.mlflow
    if not mlflow.enabled or mlflow.log_checkpoints == "none" or not folder.final.is_dir():
        return False
    sent = _sent_model_file(folder)
    return not sent.exists() or sent.read_text() != _fingerprint(folder.final)


def _send_model(destination: MlflowDestination, folder: RunFolder) -> None:
    fingerprint = _fingerprint(folder.final)
    destination.send_model(folder.final)
    _sent_model_file(folder).write_text(fingerprint)


def _sent_model_file(folder: RunFolder) -> Path:
    return folder.tracking / "mlflow-final"


def _fingerprint(model: Path) -> str:
    """Of the manifest, which holds the hash of every file."""
    return hashlib.sha256((model / MANIFEST).read_bytes()).hexdigest()
