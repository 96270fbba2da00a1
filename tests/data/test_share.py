import pytest

from wmtp.data.share import StepShare, share_of_step
from wmtp.errors import ConfigError


def rows_of(share: StepShare) -> list[int]:
    """Every row that a share reads, by its place in the step."""
    return [
        row
        for start, size in zip(share.starts, share.sizes, strict=True)
        for row in range(start, start + size)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (4, 3), (1, 12), (6, 4)])
def test_ranks_read_each_row_of_a_step_once(batch_size: int, accumulation: int, count: int) -> None:
    rows = batch_size * accumulation
    shares = [share_of_step(rows, batch_size, rank, count) for rank in range(count)]
    assert [row for share in shares for row in rows_of(share)] == list(range(rows))
    assert all(max(share.sizes) <= batch_size for share in shares)
    assert len({len(share.sizes) for share in shares}) == 1  # as many collectives on each


def test_one_rank_reads_micro_batches_as_the_recipe_says() -> None:
    assert share_of_step(12, 4).sizes == (4, 4, 4)
    assert share_of_step(10, 4).sizes == (4, 3, 3)


def test_rows_that_cannot_be_shared_are_refused_with_a_number_that_can() -> None:
    with pytest.raises(ConfigError, match="6 rows .* which 4 ranks .* multiple of 4, such as 8"):
        share_of_step(6, 3, 1, 4)


def test_halving_keeps_the_rows_down_to_single_ones() -> None:
    share: StepShare | None = share_of_step(10, 5, 1, 2)
    sizes = []
    while share is not None:
        assert rows_of(share) == [5, 6, 7, 8, 9]
        sizes.append(share.sizes)
        share = share.halved()
    assert sizes == [(5,), (2, 2, 1), (1, 1, 1, 1, 1)]
