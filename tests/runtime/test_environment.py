import os
import subprocess
import sys
from pathlib import Path

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


def watermarks(tmp_path: Path, config: str, *overrides: str, **shell: str) -> str:
    """What the three variables are when a command has read its settings."""
    path = tmp_path / "config.yaml"
    path.write_text(config)
    code = f"""
import os, sys, types
sys.modules["wmtp.config_check"] = types.ModuleType("wmtp.config_check")  # it imports torch
names = ["PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
         "PYTORCH_MPS_LOW_WATERMARK_RATIO"]
def load_settings(*_, **__):
    print("torch" in sys.modules, *[os.environ.get(name, "unset") for name in names])
sys.modules["wmtp.config_check"].load_settings = load_settings
from wmtp.cli.options import read_settings
read_settings({str(path)!r}, "recipe.yaml", None, {list(overrides)!r})
"""
    clean = {name: value for name, value in os.environ.items() if "PYTORCH" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | shell,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_req7_watermarks_are_set_before_torch_is_imported_where_nobody_named_any(
    tmp_path: Path,
) -> None:
    assert watermarks(tmp_path, "{}") == "False unset 0.9 0.8"


def test_req7_watermarks_come_from_files_and_from_the_command_line(tmp_path: Path) -> None:
    config = "mps_optimizations: {high_watermark: 0.7, low_watermark: 0.6}"
    assert watermarks(tmp_path, config) == "False unset 0.7 0.6"
    by_hand = "config.mps_optimizations.low_watermark=0.5", "mps_optimizations.fallback_to_cpu=true"
    assert watermarks(tmp_path, config, *by_hand) == "False 1 0.7 0.5"


def test_req7_a_high_watermark_of_the_shell_keeps_the_low_one_below_it(tmp_path: Path) -> None:
    shell = {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.4"}
    assert watermarks(tmp_path, "{}", **shell) == "False unset 0.4 0.4"


def test_req7_the_program_sets_them_before_any_command_runs() -> None:
    """``wmtp generate`` has no config, and imports torch before it asks for a device."""
    code = """
import os, sys
sys.argv = ["wmtp", "--version"]
from wmtp.cli import main
try:
    main()
except SystemExit:
    pass
print("torch" in sys.modules, os.environ["PYTORCH_MPS_HIGH_WATERMARK_RATIO"])
"""
    assert run_python(code, PYTORCH_MPS_HIGH_WATERMARK_RATIO="0.6").endswith("False 0.6")
