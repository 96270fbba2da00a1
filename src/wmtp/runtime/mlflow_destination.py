"""Send a run to MLflow: a local SQLite store by default, or the user's server."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

from wmtp.runtime.metrics import Row
from wmtp.runtime.run_folder import RunFolder
from wmtp.runtime.tracking import RunStatus
from wmtp.secrets import redacted, without_secrets

# limits of one MLflow request
_METRICS_PER_REQUEST: Final = 1000
_PARAMETERS_PER_REQUEST: Final = 100
_LONGEST_VALUE: Final = 6000

_NOT_IN_A_NAME = re.compile(r"[^\w\-. /]")


def local_tracking_uri(base_path: Path) -> str:
    """URI of the SQLite store beside the run folders, the kind of local store MLflow advises."""
    return f"sqlite:///{base_path.resolve()}/mlflow.db"


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
    parameters cannot change.
    """

    name = "MLflow"

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
        self._tracking_uri = tracking_uri or local_tracking_uri(folder.root.parent)
        self._experiment = experiment
        self._parameters = flat_parameters(settings)
        self._tags = {key: without_secrets(value) for key, value in tags.items()}
        self._run_file = folder.tracking / "mlflow-run.json"
        self._client: Any = None
        self._run_id = ""
        self._is_new = False

    def connect(self) -> bool:
        """Go on in the run whose id is in the run folder, or make a new one."""
        from mlflow.tracking import MlflowClient

        # its progress notes ("Creating initial MLflow database tables") and retry warnings
        # would land in the middle of the progress bar; what fails is raised as well
        for logger in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self._client = MlflowClient(self._tracking_uri)
        run_id = self._find_run()
        if run_id is not None:
            self._run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._run_id = self._make_run()
            self._is_new = True
        self._log_settings()
        is_empty, self._is_new = self._is_new, False  # a later reconnect finds it filled
        return is_empty

    def send(self, rows: Sequence[Row]) -> None:
        """Log each row's numbers at its step."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now_ms, int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), _METRICS_PER_REQUEST):
            part = metrics[start : start + _METRICS_PER_REQUEST]
            self._client.log_batch(self._run_id, metrics=part, synchronous=True)

    def close(self, status: RunStatus) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run_id, status=status)

    def _find_run(self) -> str | None:
        """Id of the run that this folder was tracked as, None if that store has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            saved = json.loads(self._run_file.read_bytes())
            if saved["tracking_uri"] != without_secrets(self._tracking_uri):
                return None
            run = self._client.get_run(saved["run_id"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(run.info.run_id) if run.info.lifecycle_stage == "active" else None

    def _make_run(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            artifacts = self._folder.root.parent.resolve() / "mlflow-artifacts"
            experiment_id = self._client.create_experiment(
                self._experiment, artifact_location=artifacts.as_uri() if self._local else None
            )
        run = self._client.create_run(experiment_id, run_name=self._folder.name)
        run_id = str(run.info.run_id)
        saved = {"run_id": run_id, "tracking_uri": without_secrets(self._tracking_uri)}
        self._run_file.write_text(json.dumps(saved) + "\n")
        return run_id

    def _log_settings(self) -> None:
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._run_id).data.params
        tags = {"wmtp.run_folder": str(self._folder.root.resolve()), **self._tags}
        for key, text in self._parameters.items():
            if known.get(key, text) != text:
                tags[f"resumed.{key}"] = text
        fresh = [Param(key, text) for key, text in self._parameters.items() if key not in known]
        for start in range(0, len(fresh), _PARAMETERS_PER_REQUEST):
            part = fresh[start : start + _PARAMETERS_PER_REQUEST]
            self._client.log_batch(self._run_id, params=part, synchronous=True)
        entries = [RunTag(key, text) for key, text in tags.items()]
        for start in range(0, len(entries), _PARAMETERS_PER_REQUEST):
            part = entries[start : start + _PARAMETERS_PER_REQUEST]
            self._client.log_batch(self._run_id, tags=part, synchronous=True)
