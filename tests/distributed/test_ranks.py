import os

import pytest
import torch

from wmtp.distributed.ranks import ALONE, Ranks, launched_ranks
from wmtp.distributed.ranks import _buckets as buckets
from wmtp.errors import ConfigError, DeviceError


def test_one_process_is_a_run_of_one_rank_for_which_nothing_is_done() -> None:
    tensor = torch.tensor([1.0, 2.0])
    ALONE.sum_in_place([tensor])
    ALONE.gather_on_first({"a": tensor})
    assert tensor.tolist() == [1.0, 2.0]
    assert ALONE.sum([1.5]) == [1.5]
    assert [ALONE.any(False), ALONE.any(True)] == [False, True]
    assert ALONE.from_first(lambda: {"a": 1}) == {"a": 1}
    assert ALONE.everywhere(None) == []
    assert ALONE.apart() is ALONE
    assert ALONE.is_first
    assert not Ranks(1, 2).is_first


def test_a_refusal_of_a_single_process_is_passed_on() -> None:
    def refuse() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        ALONE.from_first(refuse)


def test_the_environment_of_the_launcher_is_read() -> None:
    assert launched_ranks({}) == (0, 1, 0)
    said = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}
    assert launched_ranks(said) == (9, 16, 1)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "two"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_a_launcher_that_says_half_of_it_is_refused(said: dict[str, str], named: str) -> None:
    with pytest.raises(DeviceError, match=named):
        launched_ranks(said)


def test_this_test_runs_without_a_launcher() -> None:
    assert "WORLD_SIZE" not in os.environ


def test_messages_hold_tensors_of_one_dtype_and_some_megabytes() -> None:
    large = torch.zeros(5 * 2**20)  # 20 MiB
    small, double = torch.zeros(3), torch.zeros(3, dtype=torch.float64)
    found = [[t.numel() for t in bucket] for bucket in buckets([small, large, large, double])]
    assert found == [[3, 5 * 2**20], [5 * 2**20], [3]]
    assert list(buckets([])) == []
