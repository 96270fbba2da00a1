"""Programs that were handed in are judged anew, and what is found is what the critic learns."""

import json
from pathlib import Path

from wmtp.cli import app
from wmtp.data.json_lines import parse_row

PROBLEM = {
    "name": "double",
    "description": "Print twice the number.",
    "public_tests": {"input": ["2\n", "5\n"], "output": ["4\n", "10\n"]},
    "solutions": {
        "language": [3, 3, 2],
        "solution": ["print(2 * int(input()))", "print(4)", "int main() {}"],
    },
    "incorrect_solutions": {"language": [3], "solution": ["n = int(input())\nprint(n + n)\n"]},
}


def test_wrong_labels_are_put_right_by_running(tmp_path: Path) -> None:
    """The second "solution" is wrong, the "incorrect" one is right; C++ is left out."""
    contest, rewards = tmp_path / "contest.jsonl", tmp_path / "rewards.jsonl"
    contest.write_text(json.dumps(PROBLEM) + "\n")
    out = tmp_path / "out.jsonl"
    app(
        ["judge", str(contest), "--problems", str(contest), "--out", str(out),
         "--rewards", str(rewards)],
        standalone_mode=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in rewards.read_text().splitlines()]
    assert [row["is_correct"] for row in rows] == [True, False, True]
    assert {row["group"] for row in rows} == {"double"}
    assert [parse_row(row, "").reward for row in rows] == [1.0, 0.0, 1.0]
    assert rows[0]["prompt"] == '"""\nPrint twice the number.\n"""\n'
    labels = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert labels == [True, True, False]
