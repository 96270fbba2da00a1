"""What is measured, of models and of the programs they write. Importing this imports no torch."""

from wmtp.evaluation.sandbox.judging import Judge, judge, judge_many
from wmtp.evaluation.sandbox.verdict import STATUSES, Case, Limits, Verdict

__all__ = ["STATUSES", "Case", "Judge", "Limits", "Verdict", "judge", "judge_many"]
