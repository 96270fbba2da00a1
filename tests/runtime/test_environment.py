import os
import subprocess
import sys

SHOW = """
import os, sys
from wmtp.runtime.environment import set_environment_before_torch
assert not {"torch", "numpy", "mlflow"} & set(sys.modules)
in_time = set_environment_before_torch(
    mps_fallback_to_cpu=False, mps_high_watermark=0.9, mps_low_watermark=0.8
)
names = ["PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
         "PYTORCH_MPS_LOW_WATERMARK_RATIO", "TOKENIZERS_PARALLELISM", "MLFLOW_DISABLE_TELEMETRY"]
print(in_time, *[os.environ[name] for name in names])
"""


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return result.stdout.strip()


def test_everything_is_set_before_torch_is_imported() -> None:
    found = run_python(SHOW, TOKENIZERS_PARALLELISM="false", MLFLOW_DISABLE_TELEMETRY="true")
    assert found == "True 0 0.9 0.8 false true"


def test_config_wins_over_the_shell_and_the_shell_over_defaults() -> None:
    found = run_python(SHOW, PYTORCH_MPS_HIGH_WATERMARK_RATIO="1.7", TOKENIZERS_PARALLELISM="true")
    assert found.startswith("True 0 0.9 0.8 true")


def test_being_too_late_is_told() -> None:
    code = "import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n" + SHOW.replace(
        '"torch", ', ""
    )
    assert run_python(code).startswith("False")
