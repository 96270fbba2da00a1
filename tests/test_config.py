from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from wmtp.config import Config, Recipe, Settings
from wmtp.config_check import changes_since, load_settings
from wmtp.errors import ConfigError
from wmtp.opening.checks import check_start
from wmtp.runtime.run_folder import create_run_folder
from wmtp.sections import section_of
from wmtp.weighting import RandomMatched, Rho1, Shuffled

RECIPE: dict[str, Any] = {
    "run": {"name": "trial", "tags": ["a", "b"]},
    "model": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "heads": {"horizon": 4},
    },
    "data": {
        "train": {"sources": ["text.txt", {"path": "x.jsonl", "split": "train"}], "max_length": 32},
        "eval": {"sources": ["text.txt"]},
    },
    "weighting": {"algorithm": "rho1-wmtp", "temperature": 2.0},
    "loss": {"head_scale": [1, 0.3, 0.3, 0.3]},
    "train": {"max_steps": 5, "early_stopping": {"enabled": False}},
    "optim": {"lr": 0.001, "betas": [0.9, 0.95]},
}
CONFIG: dict[str, Any] = {
    "devices": {"compute_backend": "cpu", "fsdp": {"enabled": False}},
    "mps_optimizations": {"fallback_to_cpu": False},
    "paths": {"models": {"base": None}, "datasets": {}, "checkpoints": {"keep_last": 3}},
    "mlflow": {"enabled": False},
    "tensorboard": {"enabled": False},
    "log_interval": 2,
}


def write(folder: Path, config: Any = CONFIG, recipe: Any = RECIPE) -> tuple[str, str]:
    paths = folder / "config.yaml", folder / "recipe.yaml"
    for path, values in zip(paths, (config, recipe), strict=True):
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(paths[0]), str(paths[1])


def load(folder: Path, *overrides: str, **files: Any) -> Settings:
    return load_settings(*write(folder, **files), overrides=overrides)


def faults(folder: Path, *overrides: str, **files: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides, **files)
    return str(caught.value).splitlines()


def with_value(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = path
    inner = with_value(tree.get(key) or {}, tuple(rest), value) if rest else value
    return {**tree, key: inner}


def sections(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every section of a schema, found from the schema itself."""
    yield path
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and name not in ("sources", "weighting"):
            yield from sections(inner, (*path, name))


ALL_SECTIONS = [("config", path) for path in sections(Config)] + [
    ("recipe", path) for path in [*sections(Recipe), ("weighting",)]
]


@pytest.mark.parametrize(("file", "path"), ALL_SECTIONS, ids=lambda value: str(value))
def test_a_misspelled_key_in_any_section_names_file_line_and_key(
    tmp_path: Path, file: str, path: tuple[str, ...]
) -> None:
    broken = with_value(CONFIG if file == "config" else RECIPE, (*path, "no_such_thing"), 1)
    (line,) = faults(tmp_path, **{file: broken})
    assert f"{file}.yaml:" in line
    assert ".".join((*path, "no_such_thing")) + ": no such key." in line
    assert "Allowed: " in line


@pytest.mark.parametrize(("file", "path"), ALL_SECTIONS, ids=lambda value: str(value))
def test_a_section_that_is_a_word_is_refused(
    tmp_path: Path, file: str, path: tuple[str, ...]
) -> None:
    if not path:
        assert "expected sections with keys" in faults(tmp_path, **{file: "- just\n- a list\n"})[0]
        return
    broken = with_value(CONFIG if file == "config" else RECIPE, path, "word")
    assert any(".".join(path) in line for line in faults(tmp_path, **{file: broken}))


def test_the_nearest_key_is_named(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, recipe=with_value(RECIPE, ("optim", "warmup_step"), 1))
    assert "optim.warmup_step: no such key. Did you mean warmup_steps?" in line
    (line,) = faults(tmp_path, recipe=with_value(RECIPE, ("weighting", "temprature"), 1))
    assert "weighting.temprature: no such key. Did you mean temperature?" in line


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("optim", "lr"), "fast", "optim.lr is 'fast': it should be a valid number"),
        (("optim", "lr"), True, "optim.lr is True: it should be a valid number"),
        (("optim", "lr"), -1.0, "optim.lr is -1.0: it should be greater than 0"),
        (("optim", "betas"), [0.9], "optim.betas.1 is missing."),
        (("optim", "min_lr"), 1.0, "optim: min_lr 1.0 is above lr 0.001"),
        (("data", "train", "batch_size"), 2.5, "it should be a valid integer"),
        (("data", "train", "sources"), [], "data.train.sources has 0 usable values"),
        (("data", "train", "sources"), [{"path": "x", "split": "dev"}], "Allowed: all, train"),
        (("model", "heads", "kind"), "sequentia", "Did you mean sequential?"),
        (("model", "num_heads"), 3, "must be an even multiple of num_heads 3"),
        (("model", "max_seq_length"), 8, "data max_length exceeds model.max_seq_length 8"),
        (("loss", "head_scale"), [1.0], "must have 4 factors"),
        (("loss", "head_scale"), [0.0] * 4, "not all 0"),
        (("train", "num_epochs"), 1, "give exactly one of max_steps and num_epochs"),
        (("train", "early_stopping"), {"enabled": True}, "needs data.eval.sources and train.eval"),
        (("train", "algo"), "x", "train.algo is now called weighting.algorithm"),
        (("rho1",), {"x": 1}, "rho1 is now called weighting (algorithm: rho1-wmtp)"),
        (("optimizer",), {"lr": 1}, "optimizer is now called optim"),
        (("weighting", "algorithm"), "rho2-wmtp", "Use baseline-mtp, column, critic-wmtp, r"),
        (("weighting", "mode"), "skip", "weighting.mode is 'skip'"),
        (("weighting", "max_weight"), 0.5, "it should be greater than or equal to 1"),
        (("weighting",), {}, "weighting.algorithm is missing"),
        (("run", "name"), "../up", "run.name is '../up'. Use letters, digits"),
    ],
)
def test_a_wrong_value_in_the_recipe_says_what_is_allowed(
    tmp_path: Path, path: tuple[str, ...], value: Any, message: str
) -> None:
    found = faults(tmp_path, recipe=with_value(RECIPE, path, value))
    assert any(message in line for line in found), found


@pytest.mark.parametrize("section", ["data", "train"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    recipe = {key: value for key, value in RECIPE.items() if key != section}
    assert any(f"{section} is missing." in line for line in faults(tmp_path, recipe=recipe))


def test_all_faults_of_both_files_and_of_overrides_come_at_once(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        "recipe.optim.lr=fast",
        "nosection.x=1",
        "no-equals-sign",
        config=with_value(CONFIG, ("devices", "sed"), 1),
        recipe=with_value(RECIPE, ("modell",), {}),
    )
    for part in ("devices.sed", "modell", "--set recipe.optim.lr=fast", "nosection", "no-equals"):
        assert any(part in line for line in found), (part, found)


def test_overrides_win_and_profiles_lie_between(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("log_interval: 7\ndevices: {seed: 3}\n")
    settings = load_settings(
        *write(tmp_path),
        profiles=(str(profile),),
        overrides=("recipe.optim.lr=3e-4", "devices.seed=4", "run.name=other"),
    )
    assert settings.config.log_interval == 7
    assert settings.config.devices.seed == 4
    assert settings.config.paths.checkpoints.keep_last == 3
    assert settings.recipe.optim.lr == 3e-4
    assert settings.recipe.run.name == "other"


def test_the_weighting_has_its_own_keys(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.recipe.weighting == Rho1(temperature=2.0)
    shown = settings.as_dict()["recipe"]["weighting"]
    assert shown["algorithm"] == "rho1-wmtp"
    assert shown["temperature"] == 2.0


def with_weighting(**fields: Any) -> dict[str, Any]:
    return {**RECIPE, "weighting": fields}


RHO1 = {"algorithm": "rho1-wmtp", "temperature": 2.0}


def test_a_weighting_around_another_is_built_and_written_back(tmp_path: Path) -> None:
    inner = {"algorithm": "shuffled", "around": RHO1}
    recipe = with_weighting(algorithm="random_matched", around=inner, decay=0.5)
    settings = load(tmp_path, recipe=recipe)
    expected = RandomMatched(around=Shuffled(around=Rho1(temperature=2.0)), decay=0.5)
    assert settings.recipe.weighting == expected
    assert settings.algorithm == "random_matched"
    shown = settings.as_dict()["recipe"]
    assert shown["weighting"]["around"]["around"]["algorithm"] == "rho1-wmtp"
    assert shown["weighting"]["around"]["around"]["temperature"] == 2.0
    assert load(tmp_path, recipe=shown).recipe == settings.recipe
    changed = load(tmp_path, "recipe.weighting.around.around.temperature=3", recipe=recipe)
    assert changed.as_dict()["recipe"]["weighting"]["around"]["around"]["temperature"] == 3.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "weighting.around is missing."),
        ({"around": "rho1-wmtp"}, "weighting.around.algorithm is missing. Use baseline-mtp"),
        ({"around": {"temperature": 1}}, "weighting.around.algorithm is missing. Use baseline-mtp"),
        (
            {"around": {"algorithm": "rho2"}},
            "weighting.around.algorithm is 'rho2': no such algorithm",
        ),
        (
            {"around": {**RHO1, "temprature": 1}},
            "weighting.around.temprature: no such key. Did you mean temperature?",
        ),
        (
            {"around": {**RHO1, "max_weight": 0}},
            "weighting.around.max_weight is 0: it should be greater than or equal to 1",
        ),
        (
            {"around": {"algorithm": "shuffled", "around": {**RHO1, "mode": "skip"}}},
            "weighting.around.around.mode is 'skip'",
        ),
        (
            {"around": {"algorithm": "./gone.py"}},
            "weighting.around.algorithm is './gone.py': no such file",
        ),
    ],
)
def test_a_fault_inside_a_weighting_around_another_has_its_place(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    (line,) = faults(tmp_path, recipe=with_weighting(algorithm="shuffled", **fields))
    assert message in line
    assert "recipe.yaml:" in line


def test_inner_and_outer_faults_come_at_once(tmp_path: Path) -> None:
    recipe = with_weighting(
        algorithm="random_matched", around={**RHO1, "mode": "skip"}, decay=1.0, sed=1
    )
    found = faults(tmp_path, recipe=recipe)
    for part in ("weighting.around.mode", "weighting.decay is 1.0", "weighting.sed: no such key"):
        assert any(part in line for line in found), (part, found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value_loss": "bce", "spread": "uniform"}, "weighting: value_loss 'bce' estimates"),
        ({"spread": "uniform"}, "weighting: value_loss 'pairwise' estimates"),
        ({"stage1": {"max_step": 1}}, "weighting.stage1.max_step: no such key. Did you mean max"),
        ({"stage1": {"patience": 0}}, "weighting.stage1.patience is 0: it should be greater"),
        ({"gamma": 1.5}, "weighting.gamma is 1.5: it should be less than or equal to 1"),
        ({"beta": 0.0}, "weighting.beta is 0.0: it should be greater than 0"),
        ({"reward": "pair"}, "Did you mean pairs?"),
    ],
)
def test_a_fault_in_the_critic_says_what_is_allowed(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    found = faults(tmp_path, recipe=with_weighting(algorithm="critic-wmtp", **fields))
    assert any(message in line for line in found), found


def test_a_weighting_of_ones_own_is_written_back_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from wmtp.weighting import Weighting\n"
        "class Mine(Weighting):\n"
        "    scope = 'known'\n"
        "    depth: int = 3\n"
        "    def weights(self, signals): return signals.valid_BSH.float()\n"
    )
    inner = {"algorithm": "./mine.py", "depth": 4}
    settings = load(tmp_path, recipe=with_weighting(algorithm="shuffled", around=inner))
    assert settings.as_dict()["recipe"]["weighting"] == {"algorithm": "shuffled", "around": inner}


def test_head_scale_defaults_to_three_tenths_for_the_extra_heads(tmp_path: Path) -> None:
    recipe = {key: value for key, value in RECIPE.items() if key != "loss"}
    assert load(tmp_path, recipe=recipe).recipe.head_scale == (1.0, 0.3, 0.3, 0.3)


def test_the_effective_settings_read_back_to_the_same_settings(tmp_path: Path) -> None:
    settings = load(tmp_path)
    shown = settings.as_dict()
    assert load(tmp_path, config=shown["config"], recipe=shown["recipe"]) == settings


def test_environment_variables_are_read_and_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMTP_TEST_STEPS", "12")
    monkeypatch.delenv("WMTP_TEST_GONE", raising=False)
    text = yaml.safe_dump(RECIPE).replace("max_steps: 5", "max_steps: ${WMTP_TEST_STEPS}")
    text = text.replace("lr: 0.001", "lr: ${WMTP_TEST_GONE:-2e-3}")
    settings = load(tmp_path, recipe=text)
    assert settings.recipe.train.max_steps == 12
    assert settings.recipe.optim.lr == 2e-3
    text = text.replace("name: trial", "name: ${WMTP_TEST_GONE}")
    assert any("WMTP_TEST_GONE is not set" in line for line in faults(tmp_path, recipe=text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {name: a}\nrun: {name: b}\n", "recipe.yaml:2: run is given twice."),
        ("run: [unclosed\n", "not valid YAML"),
        ("run: !!python/object/apply:os.system ['true']\n", "run has the YAML tag"),
        ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(3)), "no such key"),
        (
            "b0: &b0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 9)),
            "expands to more than",
        ),
    ],
)
def test_hostile_or_broken_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert any(message in line for line in faults(tmp_path, recipe=text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read \(No such file"):
        load_settings(None, str(tmp_path / "gone.yaml"))


def test_a_file_that_cannot_be_read_is_not_blamed_for_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, str(tmp_path / "gone.yaml"))
    assert len(str(caught.value).splitlines()) == 1
    assert len(faults(tmp_path, recipe="run: [")) == 1


def test_a_bare_word_for_a_list_is_told_how_to_be_one(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "data.train.sources=text.txt")
    assert "a list is expected, as in [text.txt]" in fault


@pytest.mark.parametrize(
    "text", ["weighting.temperature=1e400", "optim.grad_clip=1e400", "model.rope_theta=1e400"]
)
def test_infinite_numbers_are_refused(tmp_path: Path, text: str) -> None:
    (fault,) = faults(tmp_path, text)
    assert "finite" in fault


def test_early_stopping_on_a_head_that_is_not_there_is_refused(tmp_path: Path) -> None:
    stopping = "train.early_stopping={enabled: true, monitor: eval/ce/head_4}"
    (fault,) = faults(tmp_path, "train.eval_interval=1", stopping)
    assert "model.heads.horizon 4 has heads 0 to 3" in fault


@pytest.mark.parametrize("key", ["base", "ref", "rm"])
def test_an_unset_variable_in_quotes_names_no_model(tmp_path: Path, key: str) -> None:
    text = f'paths: {{models: {{{key}: "${{WMTP_NOT_SET:-}}"}}}}'
    models = load(tmp_path, config=text).config.paths.models
    assert getattr(models, key) is None


def test_a_fault_two_weightings_deep_in_an_override_has_its_place(tmp_path: Path) -> None:
    text = "weighting={algorithm: shuffled, around: {algorithm: rho1-wmtp, temprature: 2}}"
    (fault,) = faults(tmp_path, text)
    assert fault.startswith(f"--set {text}: weighting.around.temprature: no such key.")


def test_swapped_files_are_told_apart(tmp_path: Path) -> None:
    config, recipe = write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_settings(recipe, config)
    lines = str(caught.value).splitlines()
    for file, key, other in ((recipe, "data", "recipe"), (config, "devices", "config")):
        ending = f": {key} belongs in the file that --{other} names."
        assert any(line.startswith(f"{file}:") and line.endswith(ending) for line in lines)


@pytest.mark.parametrize("override", ["data.rewards={sources: [x.jsonl]}", "optim.value_lr=0.001"])
def test_what_only_the_critic_uses_is_refused_elsewhere(tmp_path: Path, override: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {train: {sources: [x.txt]}}\nweighting: {algorithm: baseline-mtp}\n"
        "train: {max_steps: 1}\n"
    )
    with pytest.raises(ConfigError, match="critic-wmtp alone"):
        load_settings(None, str(recipe), overrides=(override,))


def test_a_final_model_that_is_not_written_cannot_be_logged(tmp_path: Path) -> None:
    (fault,) = faults(
        tmp_path,
        "config.mlflow.log_checkpoints=final",
        "config.paths.checkpoints.save_final=false",
    )
    assert "mlflow.log_checkpoints is 'final', but paths.checkpoints.save_final is false" in fault


def test_a_login_that_run_yaml_does_not_keep_is_no_change(tmp_path: Path) -> None:
    settings = load(tmp_path, "config.mlflow.tracking_uri=http://me:hunter2@host")
    run = create_run_folder(tmp_path / "runs", "first")
    run.write_settings(settings.as_dict())
    assert changes_since(run.settings_file, settings) == []
    other = load(tmp_path, "config.mlflow.tracking_uri=http://me:hunter2@other")
    assert changes_since(run.settings_file, other) == [
        "config.mlflow.tracking_uri is now 'http://***@other'; the run began with 'http://***@host'"
    ]


def test_sections_that_do_not_go_together_are_all_told(tmp_path: Path) -> None:
    recipe = with_value(RECIPE, ("optim", "value_lr"), 0.1)
    recipe = with_value(recipe, ("loss", "head_scale"), [1.0])
    found = faults(tmp_path, recipe=recipe)
    assert len(found) == 2
    assert "loss.head_scale [1.0] must have 4 factors" in found[0]
    assert "optim.value_lr is for weighting.algorithm critic-wmtp alone" in found[1]
    assert all(line.startswith(str(tmp_path)) for line in found)


def test_wrong_keys_and_keys_that_do_not_go_together_are_told_at_once(tmp_path: Path) -> None:
    """And nothing is said of a key's neighbours that only its own fault would make true."""
    told = faults(
        tmp_path,
        "recipe.optim.lr=fast",
        "recipe.optim.min_lr=0.5",  # above any lr that could stand in for it
        "recipe.optim.betas=[0.9, 1.5]",
        "recipe.train.max_step=5",
        "recipe.model.heads.horizon=2",
        "recipe.loss.head_scale=[1.0, 0.3, 0.3]",
        "config.log_interval=0",
    )
    assert len(told) == 5, told
    parts = ["lr is 'fast'", "betas [0.9, 1.5] must", "Did you mean max_steps"]
    parts += ["must have 2 factors", "log_interval is 0"]
    for part in parts:
        assert sum(part in line for line in told) == 1, part


def test_a_fault_of_the_weighting_says_nothing_of_what_needs_one(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        "recipe.weighting={algorithm: critic-wmtp, decay: 5}",
        "recipe.data.rewards.sources=[rewards.jsonl]",
        "recipe.optim.lr=fast",
        "recipe.loss.head_scale=[1.0]",
    )
    assert len(told) == 3, told
    for part in ("weighting.decay", "optim.lr", "loss.head_scale"):
        assert sum(part in line for line in told) == 1, part


def test_a_start_that_cannot_be_is_told_whole(tmp_path: Path) -> None:
    config = with_value(CONFIG, ("paths", "models", "base"), str(tmp_path / "gone"))
    recipe = with_value(RECIPE, ("weighting",), {"algorithm": "rho1-wmtp"})
    recipe = with_value(recipe, ("train", "average_last"), 9)
    with pytest.raises(ConfigError) as raised:
        check_start(load(tmp_path, config=config, recipe=recipe))
    told = str(raised.value).splitlines()
    assert [line.split(" is ")[0].split(" needs ")[0] for line in told] == [
        "weighting.algorithm rho1-wmtp",
        "paths.models.base",
        "train.average_last",
        "both a start and a shape are given: paths.models.base",
    ]


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["model.heads.horizon=1", "loss.head_scale=null"], True),
        (["loss.head_scale=[1, 0, 0, 0]"], True),
        (["loss.head_scale=[1, 0, 0, 0]", "loss.anneal.to=[1, 0, 0.3, 0]"], False),
        (["loss.head_scale=[0, 0, 0, 1]"], False),
    ],
)
def test_a_trunk_that_has_no_head_to_teach_is_refused(
    tmp_path: Path, overrides: list[str], refused: bool
) -> None:
    overrides = [*overrides, "loss.distill=0.5"]
    if not refused:
        assert load(tmp_path, *overrides).recipe.loss.distill == 0.5
        return
    (line,) = faults(tmp_path, *overrides)
    assert "loss.distill is 0.5, but no head beyond the trunk's own learns" in line


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_the_trunk_lies_between_none_and_all(tmp_path: Path, share: float) -> None:
    (line,) = faults(tmp_path, f"loss.distill={share}")
    assert "loss.distill" in line


def test_req6_graph_mode_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "config.mps_optimizations.use_graph_mode=true")
    assert "reduce-overhead" in fault
    assert fault.endswith("set use_graph_mode: false.")
    assert not load(tmp_path).config.mps_optimizations.use_graph_mode


def test_watermarks_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "config.mps_optimizations.high_watermark=0.7")
    assert "low_watermark 0.8 is above high_watermark 0.7" in fault
