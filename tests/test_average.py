import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.toys import toy_model
from wmtp import average as average_module
from wmtp.average import average_checkpoints, newest_good_checkpoints
from wmtp.checkpoints.checkpoint import find_damage, write_checkpoint
from wmtp.cli import app
from wmtp.errors import CheckpointError, ConfigError, StorageError, WmtpError
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import SpecialTokens
from wmtp.model.stored_tensors import tensor_files

ONE_FILE, SEVERAL = 10**9, 20_000


def moved_model(seed: int, **changes: object) -> MultiTokenModel:
    model = toy_model(2, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def save_step(
    run: Path, step: int, model: MultiTokenModel | None = None, shard_bytes: int = ONE_FILE
) -> Path:
    def fill(folder: Path) -> None:
        save_model(
            model or moved_model(step),
            folder,
            special_tokens=SpecialTokens(1, (2,)),
            max_shard_bytes=shard_bytes,
        )
        (folder / "tokenizer.json").write_text(f'{{"of step": {step}}}')
        (folder / "training_state").mkdir()
        (folder / "training_state" / "state.json").write_text("{}")

    return write_checkpoint(run / "checkpoints", step, fill, keep_last=None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "one-run"
    (folder / "checkpoints").mkdir(parents=True)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for path in set(tensor_files(folder).values()):
        merged |= load_file(path)
    return merged


def average(*arguments: str | Path) -> None:
    app(["average", *map(str, arguments)], standalone_mode=False)


def refusal(kind: type[WmtpError], call: Callable[[], None]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# the numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [ONE_FILE, SEVERAL])
def test_the_mean_is_that_of_float64_rounded_once(run: Path, shard_bytes: int) -> None:
    steps = [save_step(run, step, shard_bytes=shard_bytes) for step in (10, 20, 30)]
    average_checkpoints(steps, run / "average")
    sources, mean = [weights(step) for step in steps], weights(run / "average")
    assert mean.keys() == sources[0].keys()
    rounded_early = 0
    for name, tensor in mean.items():
        exact = torch.stack([source[name] for source in sources]).double().mean(0)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, exact.float()), name
        early = sources[0][name] + sources[1][name] + sources[2][name]
        rounded_early += int((early / 3 != tensor).sum())
    assert rounded_early > 0  # sums in float32 would have shown


def test_a_mean_worked_by_hand(run: Path) -> None:
    """The two halves meet in the middle; a sum in float32 would lose the 1 beside 2^25."""
    folders = [save_step(run, step) for step in (1, 2, 3)]
    for folder, value in zip(folders, (2.0**25, 1.0, -(2.0**25)), strict=True):
        path = folder / "model.safetensors"
        save_file({"model.norm.weight": torch.tensor([value, value])}, path)
    average_checkpoints(folders, run / "average")
    mean = weights(run / "average")["model.norm.weight"]
    assert mean.tolist() == [torch.tensor(1 / 3).item()] * 2


@pytest.mark.parametrize("shard_bytes", [ONE_FILE, SEVERAL])
def test_the_mean_is_a_whole_model_directory(run: Path, shard_bytes: int) -> None:
    steps = [save_step(run, step, shard_bytes=shard_bytes) for step in (10, 20)]
    average_checkpoints(steps, run / "average")
    model = load_model(run / "average")
    assert model.horizon == 2
    loaded = model.state_dict()
    for name, tensor in moved_model(10).state_dict().items():
        other = moved_model(20).state_dict()[name]
        assert torch.equal(loaded[name], ((tensor.double() + other) / 2).float()), name
    found = {path.name for path in (run / "average").iterdir()}
    expected = {"config.json", "generation_config.json", "tokenizer.json", "average.json"}
    of_weights = {path.name for path in steps[1].iterdir() if "safetensors" in path.name}
    assert found == expected | of_weights | {"manifest.json"}
    assert (len(of_weights) > 1) == (shard_bytes == SEVERAL)
    assert json.loads((run / "average" / "average.json").read_text()) == {
        "mean_of": ["step-00000010", "step-00000020"]
    }
    assert (run / "average" / "tokenizer.json").read_text() == '{"of step": 20}'
    assert find_damage(run / "average") is None


def test_a_model_in_one_file_and_one_in_several_have_a_mean(run: Path) -> None:
    steps = [save_step(run, 1, shard_bytes=SEVERAL), save_step(run, 2)]
    average_checkpoints(steps, run / "average")
    assert (run / "average" / "model.safetensors").is_file()
    name = "model.norm.weight"
    exact = (weights(steps[0])[name].double() + weights(steps[1])[name]) / 2
    assert torch.equal(weights(run / "average")[name], exact.float())


# the command --------------------------------------------------------------------------------------


def test_the_newest_are_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20, 30):
        save_step(run, step)
    average(run, "--last", "2")
    assert "mean of step-00000020, step-00000030" in capsys.readouterr().out
    mean = weights(run / "average")["lm_head.weight"]
    exact = (moved_model(20).unembedding_VD.double() + moved_model(30).unembedding_VD.double()) / 2
    assert torch.equal(mean, exact.float())


def test_a_damaged_one_is_passed_over_and_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save_step(run, step) for step in (10, 20, 30)]
    (folders[1] / "tokenizer.json").write_text('{"of step": 99}')
    average(run, "--last", "2", "--out", run / "mean")
    output = capsys.readouterr()
    assert output.out == f"{run / 'mean'}: mean of step-00000010, step-00000030\n"
    assert "step-00000020 is damaged" in output.err
    message = refusal(CheckpointError, lambda: average(run, "--last", "3"))
    assert "the last 3 checkpoints" in message
    assert "has only 2 to use; step-00000020 is damaged" in message
    assert not (run / "average").exists()


def test_more_than_there_are_is_refused_with_their_number(run: Path) -> None:
    save_step(run, 10)
    message = refusal(CheckpointError, lambda: average(run, "--last", "4"))
    assert "the last 4 checkpoints" in message
    assert "has only 1 to use." in message
    assert "keep_last" in message


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert "is no run folder" in refusal(ConfigError, lambda p=path: average(p, "--last", "2"))
    assert list(tmp_path.iterdir()) == []


# what may be written over -------------------------------------------------------------------------


def test_an_earlier_mean_is_replaced_and_nothing_else_is(run: Path) -> None:
    steps = [save_step(run, step) for step in (10, 20)]
    out = run / "average"
    out.mkdir()
    average_checkpoints(steps[:1], out)
    average_checkpoints(steps, out)
    assert torch.equal(
        weights(out)["lm_head.weight"],
        ((moved_model(10).unembedding_VD.double() + moved_model(20).unembedding_VD) / 2).float(),
    )
    foreign = run / "final"
    save_model(moved_model(1), foreign, special_tokens=SpecialTokens(1, (2,)))
    before = weights(foreign)
    assert "is not replaced" in refusal(ConfigError, lambda: average_checkpoints(steps, foreign))
    assert weights(foreign).keys() == before.keys()
    file = run / "notes"
    file.write_text("mine")
    assert "is not replaced" in refusal(ConfigError, lambda: average_checkpoints(steps, file))
    assert file.read_text() == "mine"
    as_step = run / "checkpoints" / "step-00000030"
    assert "pass for a checkpoint" in refusal(
        ConfigError, lambda: average_checkpoints(steps, as_step)
    )


def test_a_full_disk_leaves_the_earlier_mean(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [save_step(run, step) for step in (10, 20)]
    average_checkpoints(steps[:1], run / "average")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(average_module, "write_one_by_one", full)
    message = refusal(StorageError, lambda: average_checkpoints(steps, run / "average"))
    assert "No space left on device" in message
    assert find_damage(run / "average") is None
    assert torch.equal(weights(run / "average")["lm_head.weight"], moved_model(10).unembedding_VD)
    assert sorted(path.name for path in run.iterdir()) == ["average", "checkpoints"]


# models that have no mean -------------------------------------------------------------------------


def test_models_of_different_shapes_have_no_mean(run: Path) -> None:
    narrow = save_step(run, 10)
    wide = save_step(run, 20, moved_model(20, intermediate_size=56))
    message = refusal(CheckpointError, lambda: average_checkpoints([narrow, wide], run / "average"))
    assert "step-00000010 and step-00000020 hold different models" in message
    assert "mlp.down_proj.weight is [32, 48] in the one and [32, 56] in the other" in message
    deep = save_step(run, 30, moved_model(30, num_layers=3))
    message = refusal(CheckpointError, lambda: average_checkpoints([deep, narrow], run / "average"))
    # what is the third layer of the one is the head of the other
    assert "model.layers.2.eh_proj.weight is absent in the one and [32, 64] in the other" in message
    assert not (run / "average").exists()


def test_weights_that_were_rounded_have_no_exact_mean(run: Path) -> None:
    step = save_step(run, 10)
    path = step / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    message = refusal(CheckpointError, lambda: average_checkpoints([step], run / "average"))
    assert "is stored as BF16" in message


def test_newest_good_checkpoints_come_oldest_first(run: Path) -> None:
    for step in (30, 10, 20):
        save_step(run, step)
    chosen, refused = newest_good_checkpoints(run / "checkpoints", 2)
    assert [path.name for path in chosen] == ["step-00000020", "step-00000030"]
    assert refused == []
