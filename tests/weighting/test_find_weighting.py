from pathlib import Path

import pytest
import torch

from wmtp.errors import ConfigError
from wmtp.loss import fused_mtp_loss
from wmtp.weighting import (
    ALGORITHMS,
    Baseline,
    Critic,
    RandomMatched,
    Shuffled,
    Signals,
    find_critic,
    find_weighting,
    observe,
    weigh_chunk,
)

SURPRISE = """
from pydantic import Field, PositiveFloat
from torch import Tensor
from wmtp.weighting import Signals, Weighting, mean_one


class Surprise(Weighting):
    \"\"\"Weigh a target by how surprised the model is, up to a cap in nats.\"\"\"

    scope = "sequence"
    cap: PositiveFloat = Field(4.0, description="surprise above this counts no more")

    def weights(self, signals: Signals) -> Tensor:
        return mean_one(signals.ce_BSH.clamp(max=self.cap), signals.valid_BSH)
"""


def test_a_users_own_file_works_without_touching_the_package(tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text(SURPRISE)
    weighting = find_weighting("./surprise.py", tmp_path)(cap=2.0)
    signals = Signals(torch.ones(1, 2, 2, dtype=torch.bool))
    ce = torch.tensor([[[1.0, 2.0], [3.0, 3.0]]])
    weights = weigh_chunk(weighting, signals, ce, slice(0, 1))
    torch.testing.assert_close(weights, torch.tensor([[[4.0, 8.0], [8.0, 8.0]]]) / 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "exactly one subclass of Weighting; found none"),
        (SURPRISE + SURPRISE.replace("Surprise", "Again"), "found Surprise, Again"),
        ("import nonsense_that_is_not_there\n", "could not be run: ModuleNotFoundError"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_weighting(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    "body", ["    scope = 'known'\n", "    def weights(self, signals):\n        return None\n"]
)
def test_a_class_that_lacks_scope_or_weights_is_refused(tmp_path: Path, body: str) -> None:
    text = f"from wmtp.weighting import Weighting\nclass Mine(Weighting):\n{body}"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=r"Mine must have a scope .* and a method weights"):
        find_weighting(str(tmp_path / "mine.py"))


def test_an_unknown_algorithm_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no such algorithm\. Use baseline-mtp, column, critic-wmtp, random"
    ):
        find_weighting("rho2-wmtp")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_weighting("./gone.py", tmp_path)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_declares_its_scope_and_describes_its_keys(algorithm: str) -> None:
    kind = ALGORITHMS[algorithm]
    around = {"around": Baseline()} if "around" in kind.model_fields else {}
    assert kind.algorithm == algorithm
    assert kind(**around).scope in ("known", "token", "sequence")
    assert all(field.description for field in kind.model_fields.values())


def test_a_signal_that_was_not_declared_is_named() -> None:
    with pytest.raises(ValueError, match="must declare needs"):
        _ = Signals(torch.ones(1, 1, 1, dtype=torch.bool)).reference_ce_BSH


BROKEN = """
from torch import Tensor
from wmtp.weighting import Signals, Weighting


class Broken(Weighting):
    scope = "SCOPE"

    def weights(self, signals: Signals) -> Tensor:
        BODY

    def observe(self, signals: Signals) -> None:
        raise RuntimeError("nothing to see")
"""


@pytest.mark.parametrize("scope", ["known", "token", "sequence"])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"weights\(\) raised ZeroDivisionError: division by zero"),
        ("return signals.loss_weights_BSH", r"raised ValueError: .* must declare needs"),
        ("return None", r"gave NoneType, but a tensor \[1, \d, 2\] is needed"),
        ("return signals.valid_BSH.sum(2).float()", r"gave \[1, \d\], but a tensor"),
    ],
)
def test_a_users_weighting_that_fails_inside_the_loss_is_one_plain_line(
    tmp_path: Path, scope: str, around: bool, body: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.replace("SCOPE", scope).replace("BODY", body))
    weighting = find_weighting("./broken.py", tmp_path)()
    outer = Shuffled(around=weighting) if around else weighting
    valid = torch.ones(1, 3, 2, dtype=torch.bool)
    hidden = [torch.ones(1, 3, 4, requires_grad=True) for _ in range(2)]
    with pytest.raises(ConfigError, match=rf"^weighting\.algorithm \./broken\.py: .*{message}"):
        fused_mtp_loss(
            hidden,
            (torch.ones(5, 4),),
            torch.zeros(1, 3, 2, dtype=torch.int64),
            valid,
            lambda ce, part: weigh_chunk(outer, Signals(valid), ce, part),
            outer.scope,
            valid_count=6,
        )


def test_a_users_observe_that_fails_is_one_plain_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.replace("SCOPE", "known").replace("BODY", "pass"))
    weighting = find_weighting("./broken.py", tmp_path)()
    signals = Signals(torch.ones(1, 1, 1, dtype=torch.bool))
    for outer in (weighting, Shuffled(around=weighting)):
        with pytest.raises(ConfigError, match=r"observe\(\) raised RuntimeError: nothing"):
            observe(outer, signals)


def test_a_fault_of_a_shipped_weighting_is_not_blamed_on_the_user() -> None:
    with pytest.raises(ValueError, match="must declare needs"):
        weigh_chunk(Critic(), Signals(torch.ones(1, 1, 1).bool()), None, slice(0, 1))


def test_a_file_is_known_by_the_name_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text(SURPRISE)
    assert find_weighting("./surprise.py", tmp_path).algorithm == "./surprise.py"


def test_the_critic_is_found_inside_controls() -> None:
    critic = Critic(beta=2.0)
    assert find_critic(critic) is critic
    assert find_critic(RandomMatched(around=Shuffled(around=critic))) is critic
    assert find_critic(Shuffled(around=Baseline())) is None
