"""Rewards on completions: built-in verifiers, and your own functions by TRL's convention.

A reward function is called with keywords `prompts`, `completions`, `completion_ids` and every column of the data set,
each a list with one entry per completion; it returns one float, or None (missing, which is not zero), per completion.
It may be `async`. For chat prompts a completion is `[{"role": "assistant", "content": text}]`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import queue
import re
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, SupportsFloat

from anypo.errors import RunError, UsageError, unknown

KEYWORDS = ("prompts", "completions", "completion_ids")
"""Keywords of every reward function beside the columns of the data set."""


class _Failure(Exception):
    """A reward call failed; the text says how. Internal to `Reward`."""


class TooSlow(Exception):
    """A call took longer than it may."""


@dataclass
class Reward:
    """A reward function with its contract enforced.

    fn: the function. name: its channel's name. timeout: seconds one call may take. on_error: the result of a call that raises,
    hangs or returns no finite number: "raise" ends the run with one sentence, "drop" counts the row as missing, a
    number is used instead. The latter two call the function row by row, `concurrency` rows at a time, so that a failure
    is that of its row only; `failures` counts them. The time limit needs a thread; `direct` calls have neither.
    """

    fn: Callable[..., Any]
    name: str = ""
    timeout: float = 60.0
    on_error: str | float = "raise"
    concurrency: int = 8
    direct: bool = False
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
        if self.on_error == "raise":
            try:
                return self._call(keywords, prompts)
            except _Failure as failure:
                raise RunError(f"the reward {self.name!r} {failure}") from failure.__cause__

        def one(i: int) -> float | None:
            try:
                return self._call({k: v[i : i + 1] for k, v in keywords.items()}, prompts[i : i + 1])[0]
            except _Failure:
                failed.append(i)
                return None if self.on_error == "drop" else float(self.on_error)

        failed: list[int] = []
        with ThreadPoolExecutor(self.concurrency) as pool:
            values = list(pool.map(one, range(len(prompts))))
        self.failures += len(failed)
        return values

    def _call(self, keywords: dict[str, list], prompts: Sequence[Any]) -> list[float | None]:
        """Call the function on some rows and check what it returns; every failure is `_Failure`."""
        try:
            returned = self.fn(**keywords) if self.direct else call_within(self.timeout, self.fn, keywords)
        except TooSlow as error:
            raise _Failure(
                f"did not return within {self.timeout:g} s; make it faster or raise its time limit"
            ) from error
        except Exception as error:
            where = f" (on the prompt {_start(prompts[0])})" if len(prompts) == 1 else ""
            raise _Failure(f"raised {_describe(error)}{where}") from error
        if isinstance(returned, (str, dict)) or not isinstance(returned, Collection):
            raise _Failure(f"returned {_start(returned)}; it must return a list of one number or None per completion")
        if len(returned) != len(prompts):
            raise _Failure(
                f"returned {len(returned)} values for {len(prompts)} completions; it must return one for each"
            )
        return [self._number(x, i, prompts) for i, x in enumerate(returned)]

    def _number(self, x: Any, i: int, prompts: Sequence[Any]) -> float | None:
        if x is None:
            return None
        if not _is_finite(x):
            raise _Failure(
                f"returned {x!r} for row {i} (prompt {_start(prompts[i])}); return a finite number, or None if missing"
            )
        return float(x)

    def check(self, records: Sequence[dict[str, Any]], where: Callable[[int], str]) -> None:
        """Raise UsageError, naming the record, where a column the function needs is missing."""
        for column in self.columns:
            for i, record in enumerate(records):
                if column not in record:
                    raise UsageError(f"{where(i)} has no {column!r}, which the reward {self.name!r} needs")


def call_within(seconds: float, fn: Callable[..., Any], keywords: dict[str, Any]) -> Any:
    """Call fn(**keywords), awaited if it is async; a thread that hangs is left behind.

    Args:
        seconds: the time limit.
        fn: the function.
        keywords: its arguments.

    Raises:
        TooSlow: the call took longer.
    """
    box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            value = fn(**keywords)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value, seconds))
            box.put((value, None))
        except BaseException as error:  # raised again in the calling thread
            box.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = box.get(timeout=seconds)
    except queue.Empty:
        raise TooSlow from None
    if error is not None:
        raise error
    return value


async def _awaited(value: Any, seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await value
    except TimeoutError as error:
        if limit.expired():
            raise TooSlow from error
        raise  # one of its own


def _is_finite(x: Any) -> bool:
    """Whether x is one finite number: Python's, NumPy's or a tensor's."""
    try:
        return isinstance(x, SupportsFloat) and math.isfinite(float(x))
    except (TypeError, ValueError, RuntimeError):  # arrays of several numbers
        return False


def _describe(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _start(x: Any, length: int = 60) -> str:
    """The beginning of repr(x)."""
    text = repr(x)
    return text if len(text) <= length else text[:length] + "..."


# built-in verifiers
def text_of(message: str | list[dict[str, Any]]) -> str:
    """The text of a completion, plain or chat."""
    return message if isinstance(message, str) else str(message[-1]["content"])


def exact_match(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the completion equals `answer`, spaces around both aside."""
    return [float(text_of(c).strip() == str(a).strip()) for c, a in zip(completions, answer, strict=True)]


_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def last_number(text: str) -> Decimal | None:
    """The last number written in a text; `1,234.50` is 1234.5."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def numeric_match(completions: list[Any], answer: list[Any], **_: Any) -> list[float | None]:
    """1 where the completion's last number equals the last number of `answer`; missing where `answer` has none."""
    pairs = [(last_number(text_of(c)), last_number(str(a))) for c, a in zip(completions, answer, strict=True)]
    return [None if gold is None else float(number == gold) for number, gold in pairs]


def math_(completions: list[Any], answer: list[Any], **_: Any) -> list[float | None]:
    """1 where math-verify finds the completion equal to `answer`, LaTeX or plain; missing where it cannot read that."""
    from math_verify import parse, verify

    # its own time limits are signals, which only the main thread receives
    limit: Any = 5 if threading.current_thread() is threading.main_thread() else None

    def one(completion: str, gold: str) -> float | None:
        expected = parse(gold if "$" in gold or "\\boxed" in gold else f"${gold}$", parsing_timeout=limit)
        if not expected:
            return None
        return float(verify(expected, parse(completion, parsing_timeout=limit), timeout_seconds=limit))

    return [one(text_of(c), str(a)) for c, a in zip(completions, answer, strict=True)]


def regex_match(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the pattern in `answer` is found in the completion."""
    return [float(re.search(str(a), text_of(c)) is not None) for c, a in zip(completions, answer, strict=True)]


BUILTIN: dict[str, Callable[..., Any]] = {
    "exact": exact_match,
    "numeric": numeric_match,
    "math": math_,
    "regex": regex_match,
}


def make_reward(spec: Any, **options: Any) -> Reward:
    """Make a reward of what a user writes: `exact`, `numeric`, `math`, `regex`, `regex:PATTERN`, `FILE.py:FUNCTION`, `model:RUN`, a
    function or a Reward. `options` (timeout, on_error, concurrency) hold for functions."""
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        return Reward(spec, **options)
    name, _, rest = str(spec).partition(":")
    if name == "regex" and rest:
        return Reward(_pattern(rest), name="regex", direct=True)
    if name == "model":
        return load_reward_model(rest)
    if spec in BUILTIN:
        return Reward(BUILTIN[spec], name=spec, direct=True)
    if ".py" not in spec:
        raise unknown("reward", spec, [*BUILTIN, "FILE.py:FUNCTION", "model:RUN"])
    return load_reward(spec, **options)


def make_rewards(specs: Any, **options: Any) -> list[Reward]:
    """Rewards from one specification, a list of them, or None; see `make_reward`."""
    return [
        make_reward(spec, **options) for spec in (specs if isinstance(specs, list) else [specs]) if spec is not None
    ]


def _pattern(pattern: str) -> Callable[..., list[float]]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the pattern of the reward regex:{pattern} is not a regular expression: {error}") from error

    def match(completions: list[Any], **_: Any) -> list[float]:
        return [float(compiled.search(text_of(c)) is not None) for c in completions]

    return match


def load_reward_model(run: str) -> Reward:
    """Load the reward model that a run has learned from preferences (RUN/model), named after the run's folder: the value of its
    head at the end of an answer, in float32, on a GPU where there is one.
    """
    import torch

    from anypo.policies.language.model import LanguageModel

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
        return model.score(prompts, [text_of(c) for c in completions])

    return Reward(score, name=folder.resolve().name, direct=True)


def load_reward(spec: str, **options: Any) -> Reward:
    """Load the reward function in `FILE.py:FUNCTION`. Raises UsageError where file, function or signature is wrong."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UsageError(f"a reward of your own is written FILE.py:FUNCTION, not {spec!r}")
    path = Path(file).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {file} to take the reward {name!r} from")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # the file may import its neighbours
    module_name = f"anypo_reward_{path.stem}_{abs(hash(path))}"
    loader = SourceFileLoader(module_name, str(path))
    module_spec = ModuleSpec(module_name, loader, origin=str(path))
    module_spec.has_location = True
    module = module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"importing {file} for the reward {name!r} raised {_describe(error)}") from error
    function = vars(module).get(name)
    if not callable(function):
        functions = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module_name]
        raise unknown(f"function in {file}:", name, functions)
    return Reward(function, **options)
