"""What can go wrong in a way the user can act on; each class carries its exit code."""

from wmtp.secrets import without_secrets


class WmtpError(Exception):
    """A user's mistake or a refused input: shown as one or two plain lines, exit code 2.

    Its text is free of secrets wherever it ends up: a log, a tracker, a caller's own handler.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class ConfigError(WmtpError):
    """A config, recipe or command-line value that cannot be used."""


class DataError(WmtpError):
    """A data file, tokenizer or shard that cannot be used."""


class CheckpointError(WmtpError):
    """A model directory or checkpoint that cannot be used."""


class DeviceError(WmtpError):
    """A device, dtype or distributed setting that this machine does not have."""


class SandboxError(WmtpError):
    """Programs cannot be confined on this machine, so none was run."""


class LostRankError(DeviceError):
    """Another rank of the run has ended; what ended it is that one's, or the launcher's, to say."""


class DivergedError(WmtpError):
    """Training met a loss or gradient that is not finite."""

    exit_code = 3


class StorageError(WmtpError):
    """A checkpoint or result could not be written."""

    exit_code = 4


class TrackerError(WmtpError):
    """A tracker that was asked to take a run's metrics did not."""

    exit_code = 1


class WorkerError(WmtpError):
    """A process that worked for this one is gone."""

    exit_code = 1
