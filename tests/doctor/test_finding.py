import pytest

from wmtp.doctor.finding import Finding, attempt, failed, lines_of, passed, summary
from wmtp.errors import ConfigError


def test_whatever_a_check_raises_is_its_failure() -> None:
    def check() -> Finding:
        raise ZeroDivisionError("1 / 0\nin two lines")

    found = attempt("a check", check)
    assert (found.outcome, found.found) == ("failed", "ZeroDivisionError: 1 / 0 in two lines")
    assert found.refusal is None


def test_a_refusal_is_kept_for_the_exit_code_and_left_out_of_json() -> None:
    def check() -> Finding:
        raise ConfigError("key is wrong")

    found = attempt("a check", check)
    assert found.refusal is not None
    assert found.refusal.exit_code == 2
    assert found.as_json()["found"] == "key is wrong"
    assert "refusal" not in found.as_json()


@pytest.mark.parametrize("width", [30, 50, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    finding = failed("loss computed", "a long line of many words " * 10)
    lines = lines_of(finding, width)
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()).endswith(finding.found.strip())


def test_an_interrupt_is_no_failure_of_a_check() -> None:
    def check() -> Finding:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("a check", check)


def test_the_last_line_counts() -> None:
    assert summary([passed("a", ""), failed("b", "")], 0.0).startswith("1 passed, 1 failed, 0 not")
