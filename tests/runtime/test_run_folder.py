from pathlib import Path

import pytest
import yaml

from wmtp.errors import ConfigError, StorageError
from wmtp.runtime.run_folder import create_run_folder, open_run_folder


def test_new_run_has_its_folders(tmp_path: Path) -> None:
    run = create_run_folder(tmp_path / "runs", "first")
    assert run.name == "first"
    assert run.checkpoints.is_dir()
    assert run.tracking.is_dir()


def test_run_with_results_is_not_started_again(tmp_path: Path) -> None:
    run = create_run_folder(tmp_path, "first")
    run.metrics_file.write_text('{"step": 1}\n')
    with pytest.raises(ConfigError) as caught:
        create_run_folder(tmp_path, "first")
    assert str(caught.value) == (
        f"run 'first' already exists in {run.root}. "
        "Continue it with --resume, or choose another --run-name."
    )
    assert open_run_folder(tmp_path, "first") == run


def test_name_of_a_start_that_failed_can_be_used_again(tmp_path: Path) -> None:
    run = create_run_folder(tmp_path, "first")
    run.write_settings({"seed": 1})
    run.metrics_file.touch()
    assert create_run_folder(tmp_path, "first") == run


def test_nothing_to_resume_names_the_nearest_run(tmp_path: Path) -> None:
    create_run_folder(tmp_path, "quickstart").write_settings({})
    with pytest.raises(ConfigError, match=r"holds no run. Did you mean 'quickstart'\?"):
        open_run_folder(tmp_path, "quikstart")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", ".hidden", "a\n", "x" * 101, "/abs"])
def test_names_that_are_not_one_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="run name is"):
        create_run_folder(tmp_path, name)


def test_korean_names_are_names(tmp_path: Path) -> None:
    assert create_run_folder(tmp_path, "한국어-작은모델_1").root.is_dir()


def test_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "first").touch()
    with pytest.raises(ConfigError, match="is a file"):
        create_run_folder(tmp_path, "first")
    with pytest.raises(StorageError, match="could not be created"):
        create_run_folder(tmp_path / "first", "second")


def test_settings_are_readable_and_hold_no_password(tmp_path: Path) -> None:
    run = create_run_folder(tmp_path, "first")
    run.write_settings({"seed": 3, "mlflow": {"tracking_uri": "https://me:pw@host"}})
    saved = yaml.safe_load(run.settings_file.read_text())
    assert saved == {"seed": 3, "mlflow": {"tracking_uri": "https://***@host"}}
    assert sorted(path.name for path in run.root.iterdir()) == [
        "checkpoints",
        "run.yaml",
        "tracking",
    ]


def test_a_run_that_was_begun_may_be_started_or_resumed(tmp_path: Path) -> None:
    """Killed before its first row it holds nothing to protect, and begins anew either way."""
    run = create_run_folder(tmp_path, "run")
    with pytest.raises(ConfigError, match="holds no run. Leave"):
        open_run_folder(tmp_path, "run")
    run.write_settings({})
    assert open_run_folder(tmp_path, "run") == create_run_folder(tmp_path, "run") == run


def test_what_a_kill_left_is_looked_for_wherever_a_run_writes(tmp_path: Path) -> None:
    """One folder of leftovers for each place in which something is renamed when it is complete."""
    run = create_run_folder(tmp_path, "first")
    run.stage1.checkpoints.mkdir(parents=True)
    written = (run.settings_file, run.final, run.checkpoints / "x", run.tracking / "x")
    assert {path.parent for path in (*written, run.stage1.final)} == set(run.places)
