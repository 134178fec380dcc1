"""Rewards on completions: your own functions by TRL's convention, built-in verifiers, reward models.

A reward function is called with keywords `prompts`, `completions`, `completion_ids` and every column of the data set,
each a list with one entry per completion; it returns one float, or None (missing, which is not zero), per completion.
It may be `async`. For chat prompts a completion is `[{"role": "assistant", "content": text}]`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

from anypo.errors import RunError, UsageError, unknown
from anypo.plugins import installed, load_from_file, load_installed, package
from anypo.tasks.text.calls import TooSlow, call_each, own_loop
from anypo.tasks.text.verifiers import BUILT_IN, check_answer_pattern, make_verifier, text_of

KEYWORDS = ("prompts", "completions", "completion_ids")
"""Keywords of every reward function beside the columns of the data set."""


LARGEST_SCORE = 3.4e38
"""Scores are float32, which holds no larger number."""

STARTING = 30.0
"""Seconds a process that scores answers may take to start."""


FORMS = {
    "exact": "1 where the completion is the column `answer`, spaces around both aside",
    "numeric": "1 where the last number of the completion is that of `answer`",
    "math": "1 where the completion equals `answer` in mathematics",
    "regex": "1 where the completion matches the pattern in `answer`; regex:PATTERN: that pattern",
    "model:RUN": "the score of a reward model that a run has learned from preferences",
    "FILE.py:FUNCTION": "your own function (prompts, completions, **columns) -> scores",
}


class _Failure(Exception):
    """A reward call failed; the text says how. Internal to `Reward`."""


@dataclass
class Reward:
    """A reward function with its contract enforced.

    fn: the function; it gets copies of what it scores. name: its channel's name. timeout: seconds one call may take, see `calls`.
    on_error: the result of a call that ends in an exception, takes too long or returns no finite number: "raise" ends the run with one
    sentence, "drop" counts the row as missing, a number is used instead. The latter two call the function row by row, an
    asynchronous one for `concurrency` rows at a time, so that a failure is that of its row only, unless `together`; `failures` counts
    them. graded: its values are no mere 0 and 1. check_record: raises UsageError for a record the function cannot use.
    """

    fn: Callable[..., Any]
    name: str = ""
    timeout: float = 60.0
    on_error: str | float = "raise"
    concurrency: int = 8
    graded: bool = True
    together: bool = False
    check_record: Callable[[dict[str, Any], str], None] | None = None
    failures: int = field(default=0, init=False)

    def __post_init__(self):
        self.name = self.name or getattr(self.fn, "__name__", type(self.fn).__name__)
        if isinstance(self.on_error, str) and self.on_error not in ("raise", "drop"):
            raise UsageError(
                f'on_error of the reward {self.name!r} must be "raise", "drop" or a number, not {self.on_error!r}'
            )
        parameters = inspect.signature(self.fn).parameters.values()
        if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
            raise UsageError(
                f"the reward {self.name!r} is called with keywords; it cannot have positional-only parameters"
            )
        self._any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._named = {p.name for p in named}
        self.columns = tuple(p.name for p in named if p.default is p.empty and p.name not in KEYWORDS)
        if not self._any_keyword and not self._named:
            raise UsageError(f"the reward {self.name!r} takes no arguments; it needs `completions` or `**kwargs`")

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]],
        columns: dict[str, list],
    ) -> list[float | None]:
        """One number, or None, per completion. Raises RunError as `on_error` says."""
        keywords = dict(columns) | dict(zip(KEYWORDS, map(list, (prompts, completions, completion_ids)), strict=True))
        if not self._any_keyword:
            keywords = {k: v for k, v in keywords.items() if k in self._named}
        rows = len(prompts)
        together = self.together or self.on_error == "raise"
        parts = [slice(0, rows)] if together else [slice(i, i + 1) for i in range(rows)]
        calls = [{k: [copy_of(x) for x in v[part]] for k, v in keywords.items()} for part in parts]
        outcomes = call_each(self.fn, calls, self.timeout, self.concurrency)
        values: list[float | None] = []
        for part, outcome in zip(parts, outcomes, strict=True):
            try:
                values += self._read(outcome, prompts[part])
            except _Failure as failure:
                if self.on_error == "raise":
                    raise RunError(f"the reward {self.name!r} {failure}") from failure.__cause__
                values += [None if self.on_error == "drop" else float(self.on_error)] * len(prompts[part])
                self.failures += len(prompts[part])
        return values

    def _read(self, outcome: Any, prompts: Sequence[Any]) -> list[float | None]:
        """Return the numbers in what a call on some rows returned, or ended with; whatever they are not is a `_Failure`."""
        if isinstance(outcome, TooSlow):
            raise _Failure(f"did not return within {self.timeout:g} s; make it faster or raise its time limit")
        if isinstance(outcome, RunError):  # a sentence already
            raise _Failure(f"failed: {outcome}") from outcome
        if isinstance(outcome, BaseException):
            where = f" (on the prompt {_start(prompts[0])})" if len(prompts) == 1 else ""
            raise _Failure(f"raised {_describe(outcome)}{where}") from outcome
        if isinstance(outcome, (str, dict)) or not isinstance(outcome, Collection):
            raise _Failure(f"returned {_start(outcome)}; it must return a list of one number or None per completion")
        if len(outcome) != len(prompts):
            raise _Failure(
                f"returned {len(outcome)} values for {len(prompts)} completions; it must return one for each"
            )
        return [self._number(x, i, prompts) for i, x in enumerate(outcome)]

    def _number(self, x: Any, i: int, prompts: Sequence[Any]) -> float | None:
        if x is None:
            return None
        if not _is_finite(x):
            raise _Failure(
                f"returned {_start(x)} for row {i} (prompt {_start(prompts[i])}); return a finite number of at most"
                f" {LARGEST_SCORE:.1e}, or None if missing"
            )
        return float(x)

    def check(self, records: Sequence[dict[str, Any]], where: Callable[[int], str]) -> None:
        """Raise UsageError, naming the record, where a column the function needs is missing."""
        for column in self.columns:
            for i, record in enumerate(records):
                if column not in record:
                    raise UsageError(f"{where(i)} has no {column!r}, which the reward {self.name!r} needs")
        if self.check_record is not None:
            for i, record in enumerate(records):
                self.check_record(record, where(i))


def copy_of(x: Any) -> Any:
    """x, or a copy where it can change, as lists and dictionaries do."""
    return x if isinstance(x, (str, int, float)) else copy.deepcopy(x)


def _is_finite(x: Any) -> bool:
    """Whether x is one number of float32's range: Python's, NumPy's or a tensor's."""
    try:
        return isinstance(x, SupportsFloat) and abs(float(x)) <= LARGEST_SCORE
    except (TypeError, ValueError, RuntimeError, OverflowError):  # arrays of several numbers; integers without bounds
        return False


def _describe(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _start(x: Any, length: int = 60) -> str:
    """Return the beginning of repr(x)."""
    try:
        text = repr(x)
    except ValueError:  # an integer of too many digits
        text = f"a huge {type(x).__name__}"
    return text if len(text) <= length else text[:length] + "..."


def make_reward(spec: Any, **options: Any) -> Reward:
    """Make a reward of what a user writes: `exact`, `numeric`, `math`, `regex`, `regex:PATTERN`, `FILE.py:FUNCTION`, `model:RUN`, the
    name of an entry point `anypo.rewards`, a function or a Reward. `options` are timeout, on_error and concurrency of `Reward`."""
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        return Reward(spec, **options)
    name, _, rest = str(spec).partition(":")
    if is_unscored():
        return Reward(not_loaded, str(spec))
    if name == "model":
        return load_reward_model(rest, **options)
    if spec in BUILT_IN or (name == "regex" and rest):
        return load_verifier(name, rest or None, **options)
    if spec in installed_rewards():
        return Reward(load_installed("rewards", spec), spec, **options)
    if ".py" not in spec:
        raise unknown("reward", spec, describe_rewards())
    return load_reward(spec, **options)


def installed_rewards() -> dict[str, str]:
    """Return the packages of the entry points `anypo.rewards`, by name.

    Raises:
        UsageError: one has the name of a built-in reward.
    """
    packages = {name: package(point) for name, point in installed("rewards").items()}
    for name in packages.keys() & {*BUILT_IN, "model"}:
        raise UsageError(f"the reward name {name!r} of the package {packages[name]} is taken; choose another")
    return packages


def describe_rewards() -> dict[str, str]:
    """Return what can be written for a reward, with one line on each."""
    return FORMS | {name: f"of the package {source}" for name, source in installed_rewards().items()}


_unscored: ContextVar[bool] = ContextVar("unscored", default=False)


@contextmanager
def unscored() -> Iterator[None]:
    """Make tasks whose rewards are named but not loaded, so that no file of theirs is executed, while the context is open."""
    token = _unscored.set(True)
    try:
        yield
    finally:
        _unscored.reset(token)


def is_unscored() -> bool:
    """Whether rewards are named only, see `unscored`."""
    return _unscored.get()


def not_loaded(completions: list[Any]) -> list[None]:
    """Take the place of a reward that is not loaded."""
    raise RuntimeError("it was not loaded: this run was opened without its rewards")


def make_rewards(specs: Any, **options: Any) -> list[Reward]:
    """Rewards from one specification, a list of them, or None; see `make_reward`."""
    return [
        make_reward(spec, **options) for spec in (specs if isinstance(specs, list) else [specs]) if spec is not None
    ]


def load_verifier(
    name: str, pattern: str | None = None, timeout: float = 60.0, on_error: str | float = "raise", concurrency: int = 8
) -> Reward:
    """Make the reward of a built-in verifier.

    Args:
        name: which.
        pattern: of regex; None: the record's answer.
        timeout, on_error, concurrency: see `Reward`.
    """
    fn = make_verifier(name, pattern, timeout, on_error)
    check = check_answer_pattern if name == "regex" and pattern is None else None
    apart = name in ("math", "regex")  # has a time limit of its own, at which the rows scored so far count
    timeout = 2 * timeout + STARTING if apart else timeout
    return Reward(fn, name, timeout, on_error, concurrency, graded=False, together=apart, check_record=check)


def load_reward_model(run: str, **options: Any) -> Reward:
    """Load the reward model that a run has learned from preferences (RUN/model), named after the run's folder: the value of its
    head at the end of an answer, in float32, on a GPU where there is one.
    """
    import torch

    from anypo.policies.language.model import LanguageModel
    from anypo.policies.language.probes import score_answers

    folder = Path(run)
    if not (folder / "model").is_dir():
        raise UsageError(
            f"{run} holds no finished reward model; a reward model is written model:RUN, after a run of bt-rm"
        )
    model = LanguageModel.load(folder / "model")
    if not model.heads:
        raise UsageError(f"the model of {run} has no value head, so it scores nothing; train it with bt-rm")
    model.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)

    def score(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return score_answers(model, prompts, [text_of(c) for c in completions])

    return Reward(score, name=folder.resolve().name, together=True, **options)


def load_reward(spec: str, **options: Any) -> Reward:
    """Load the reward function in `FILE.py:FUNCTION`. Raises UsageError where file, function or signature is wrong."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UsageError(f"a reward of your own is written FILE.py:FUNCTION, not {spec!r}")
    own_loop()  # the file may ask for the event loop of its calls
    function = load_from_file(spec, "reward")
    if not callable(function):
        raise UsageError(
            f"{spec} is a {type(function).__name__}; a reward is a function (prompts, completions, **columns)"
        )
    return Reward(function, **options)
