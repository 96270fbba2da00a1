"""Send a run to MLflow: a local SQLite store by default, or the user's server."""

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from wmtp.runtime.metrics import Row
from wmtp.runtime.run_folder import RunFolder
from wmtp.secrets import redacted, without_secrets
from wmtp.tracking.deadline import Deadline
from wmtp.tracking.trackers import RunStatus

# limits of one MLflow request
_METRICS_PER_REQUEST: Final = 1000
_PARAMETERS_PER_REQUEST: Final = 100
_LONGEST_VALUE: Final = 6000

# total time of one request, whatever the server does meanwhile
_SERVER_SECONDS: Final = 10.0
# a database makes its tables in the first request
_DATABASE_SECONDS: Final = 120.0
_CLOSE_SECONDS: Final = 20.0
# the first run makes the tables of the local store, which takes a busy machine long
_LOCAL_CLOSE_SECONDS: Final = 60.0
# of a file, beyond the time of a request; a slower line than this is as good as none
_UPLOAD_BYTES_PER_SECOND: Final = 2**20

_LOGIN = re.compile(r"(?<=://)[^\s/]+@")
_NOT_IN_A_NAME = re.compile(r"[^\w\-. /]")


def local_tracking_uri(base_path: Path) -> str:
    """URI of the SQLite store beside the run folders, the kind of local store MLflow advises."""
    return f"sqlite:///{base_path.resolve()}/mlflow.db"


def without_login(tracking_uri: str) -> str:
    """The place that a URI names, whoever asks.

    Example:
        >>> without_login("https://me:hunter2@mlflow.example/api")
        'https://mlflow.example/api'
    """
    return _LOGIN.sub("", tracking_uri)


def _request_seconds(tracking_uri: str) -> float | None:
    """How long one request may take; None for a file of this machine, which is no one's server."""
    if tracking_uri.startswith(("http://", "https://")):
        return _SERVER_SECONDS
    if "://" in tracking_uri and not tracking_uri.startswith(("sqlite:", "file:")):
        return _DATABASE_SECONDS
    return None


def flat_parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow parameters, without secrets.

    Example:
        >>> flat_parameters({"optim": {"lr": 3e-4, "betas": [0.9, 0.95]}, "freeze": None})
        {'optim.lr': '0.0003', 'optim.betas': '[0.9, 0.95]', 'freeze': ''}
    """
    flat: dict[str, str] = {}

    def visit(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                visit(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list):
            flat[key] = json.dumps(value, default=str)
        else:
            flat[key] = "" if value is None else str(value)

    visit(redacted(settings), "")
    return {_NOT_IN_A_NAME.sub("_", key): text[:_LONGEST_VALUE] for key, text in flat.items()}


@final
class MlflowDestination:
    """One MLflow run; its id is kept in the run folder, so that a resumed run goes on in it.

    Parameters that a resumed run was given anew become tags ``resumed.NAME``, because MLflow's
    parameters cannot change. No request lasts longer than its deadline, whatever the server does.
    """

    name = "MLflow"
    close_seconds: float

    def __init__(
        self,
        folder: RunFolder,
        *,
        tracking_uri: str | None,
        experiment: str,
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Take what the run is to be called; connects to nothing.

        Args:
            folder: the run; the default store lies beside it.
            tracking_uri: the user's server or store, None for the default.
            experiment: MLflow's name for a group of runs, made if missing.
            settings: what is logged as parameters, nested.
            tags: the run's tags.
        """
        self._folder = folder
        self._local = tracking_uri is None
        self.close_seconds = _LOCAL_CLOSE_SECONDS if self._local else _CLOSE_SECONDS
        self._tracking_uri = tracking_uri or local_tracking_uri(folder.root.parent)
        self._experiment = experiment
        self._parameters = flat_parameters(settings)
        self._tags = {key: without_secrets(value) for key, value in tags.items()}
        self._run_file = folder.tracking / "mlflow-run.json"
        seconds = _request_seconds(self._tracking_uri)
        self._within, self._is_file = Deadline(seconds), seconds is None
        self._client: Any = None
        self._run_id = ""
        self._is_new = False
        self._portion: tuple[Row, int] | None = None

    def connect(self) -> bool:
        """Go on in the run whose id is in the run folder, or make a new one.

        Raises:
            ConnectionError: who answers is no MLflow server.
        """
        from mlflow.tracking import MlflowClient

        # at the end of a run it prints the server's address, with the login in it
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        # its progress notes ("Creating initial MLflow database tables") and retry warnings
        # would land in the middle of the progress bar; what fails is raised as well
        for logger in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        # new each time: the last one may be in the middle of a request that was given up
        self._client = client = self._within.call(lambda: MlflowClient(self._tracking_uri))
        self._run_id = self._find_run() or self._make_run()
        self._within.call(lambda: client.update_run(self._run_id, status="RUNNING"))
        self._log_settings()
        is_empty, self._is_new = self._is_new, False  # a later reconnect finds it filled
        self._keep_run()
        return is_empty

    def send(self, rows: Sequence[Row]) -> None:
        """Log each row's numbers at its step."""
        from mlflow.entities import Metric

        if self._portion is None or self._portion[0] != rows[0]:
            self._portion = (rows[0], int(time.time() * 1000))
        # the same time at a second try, so that MLflow knows what it has already stored
        _, now_ms = self._portion
        metrics = [
            Metric(name, float(value), now_ms, int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), _METRICS_PER_REQUEST):
            self._log_batch(metrics=metrics[start : start + _METRICS_PER_REQUEST])
        if metrics and not self._is_file:  # whatever answers a batch with 200 is believed
            self._confirm(metrics[-1].key)
        self._portion = None

    def send_model(self, model: Path) -> None:
        """Store a model directory as the run's artifact ``final``; to be called when connected.

        Raises:
            TimeoutError: a file took longer than its size allows.
        """
        client, run_id = self._client, self._run_id
        for path in sorted(path for path in model.rglob("*") if path.is_file()):
            place = (Path("final") / path.relative_to(model)).parent.as_posix()
            seconds = _SERVER_SECONDS + path.stat().st_size / _UPLOAD_BYTES_PER_SECOND
            self._within.call(
                partial(client.log_artifact, run_id, str(path), place), seconds=seconds
            )

    def close(self, status: RunStatus) -> None:
        """Mark the run as ended."""
        client, run_id = self._client, self._run_id
        self._within.call(lambda: client.set_terminated(run_id, status=status))

    def _log_batch(self, **entries: Any) -> None:
        client, run_id = self._client, self._run_id
        self._within.call(lambda: client.log_batch(run_id, synchronous=True, **entries))

    def _confirm(self, name: str) -> None:
        """Ask who has just taken a metric whether it knows the run, and the metric."""
        if name not in self._get_run(self._run_id).data.metrics:
            raise ConnectionError("the answer is not MLflow's: what was sent is not there")

    def _get_run(self, run_id: str) -> Any:
        """The run as the server knows it; an answer without the run is one of another server."""
        client = self._client
        run = self._within.call(lambda: client.get_run(run_id))
        if run.info.run_id != run_id:
            raise ConnectionError("the answer is not MLflow's: is tracking_uri an MLflow server?")
        return run

    def _find_run(self) -> str | None:
        """Id of the run that this folder was tracked as, None if that store has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            saved = json.loads(self._run_file.read_bytes())
            run_id, uri = str(saved["run_id"]), str(saved["tracking_uri"])
            is_new = bool(saved.get("is_new"))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if without_login(uri) != without_login(self._tracking_uri):
            return None
        try:
            run = self._get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._is_new = is_new
        return run_id if run.info.lifecycle_stage == "active" else None

    def _make_run(self) -> str:
        client, within = self._client, self._within
        experiment = within.call(lambda: client.get_experiment_by_name(self._experiment))
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            artifacts = self._folder.root.parent.resolve() / "mlflow-artifacts"
            place = artifacts.as_uri() if self._local else None
            experiment_id = within.call(
                lambda: client.create_experiment(self._experiment, artifact_location=place)
            )
        run = within.call(lambda: client.create_run(experiment_id, run_name=self._folder.name))
        run_id = str(run.info.run_id)
        if not experiment_id or not run_id:
            raise ConnectionError("the answer is not MLflow's: is tracking_uri an MLflow server?")
        self._run_id, self._is_new = run_id, True
        self._keep_run()
        return run_id

    def _keep_run(self) -> None:
        """Note the run's id at once, and that no row was sent for as long as that is so."""
        saved: dict[str, Any] = {"run_id": self._run_id}
        saved["tracking_uri"] = without_secrets(self._tracking_uri)
        if self._is_new:
            saved["is_new"] = True
        self._run_file.write_text(json.dumps(saved) + "\n")

    def _log_settings(self) -> None:
        from mlflow.entities import Param, RunTag

        known = self._get_run(self._run_id).data.params
        tags = {"wmtp.run_folder": str(self._folder.root.resolve()), **self._tags}
        for key, text in self._parameters.items():
            if known.get(key, text) != text:
                tags[f"resumed.{key}"] = text
        fresh = [Param(key, text) for key, text in self._parameters.items() if key not in known]
        for start in range(0, len(fresh), _PARAMETERS_PER_REQUEST):
            self._log_batch(params=fresh[start : start + _PARAMETERS_PER_REQUEST])
        entries = [RunTag(key, text) for key, text in tags.items()]
        for start in range(0, len(entries), _PARAMETERS_PER_REQUEST):
            self._log_batch(tags=entries[start : start + _PARAMETERS_PER_REQUEST])
