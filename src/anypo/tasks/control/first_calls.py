"""What an environment returns from its first `reset` and its first `step`, checked against Gymnasium's protocol and its spaces."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from anypo.errors import UsageError
from anypo.types import MASK

RETURNS = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}
"""What Gymnasium's methods return."""


def check_first_calls(name: str, env: Any) -> None:
    """Look at the first result of `reset` and of `step`; later calls are the environment's own methods again.

    The values are counted where the environment returns them, before a wrapper unpacks them; the observation is compared with
    the outermost space.

    Args:
        name: of the task, for messages.
        env: the environment, just made.

    Raises:
        UsageError: `reset` takes no seed; the calls raise it where a result breaks the protocol.
    """
    inner = env.unwrapped
    parameters = inspect.signature(inner.reset).parameters.values()
    if not any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise UsageError(f"{name}: reset takes no seed; Gymnasium's is reset(*, seed=None, options=None)")

    def check_observation(method: str, result: Any) -> None:
        if problem := describe_mismatch(env.observation_space, result[0]):
            raise UsageError(f"{name}: {method} returned an observation that {problem}")

    for method in RETURNS:
        watch_first(inner, method, lambda result, method=method: check_values(name, method, result))
        watch_first(env, method, lambda result, method=method: check_observation(method, result))


def watch_first(env: Any, method: str, check: Callable[[Any], None]) -> None:
    """Call `check` with the result of the first call of a method.

    Args:
        env: whose attribute it is.
        method: its name.
        check: called once.
    """
    call = getattr(env, method)

    def first(*arguments: Any, **keywords: Any) -> Any:
        setattr(env, method, call)
        result = call(*arguments, **keywords)
        check(result)
        return result

    setattr(env, method, first)


def check_values(name: str, method: str, result: Any) -> None:
    """Refuse a result with other than the values in `RETURNS`.

    Args:
        name: of the task, for messages.
        method: `reset` or `step`.
        result: what it returned.
    """
    wanted = RETURNS[method]
    count = len(result) if isinstance(result, tuple) else 1
    if count != len(wanted):
        raise UsageError(
            f"{name}: {method} returned {count} value{'s' * (count != 1)}; Gymnasium's has {len(wanted)} ({', '.join(wanted)})"
        )
    if not isinstance(result[-1], Mapping):
        raise UsageError(f"{name}: {method} returned {short(result[-1])} as info, which must be a dict")
    if method == "step":
        for flag, value in zip(wanted[2:4], result[2:4], strict=True):
            if np.ndim(value) or not isinstance(value, bool | int | np.bool_ | np.integer):
                raise UsageError(f"{name}: step returned {short(value)} as {flag}, which must be True or False")


def describe_mismatch(space: Any, observation: Any) -> str | None:
    """Say how an observation differs from its space in kind, shape or keys; None where it does not. Bounds are not checked."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping):
            return f"is {short(observation)}; the space is a Dict with {', '.join(map(repr, space))}"
        missing, extra = space.keys() - observation.keys(), observation.keys() - space.keys() - {MASK}
        if missing or extra:
            lacks = f"lacks the key {min(missing)!r}" if missing else f"has the key {min(extra, key=str)!r}"
            return f"{lacks}; the space has {', '.join(map(repr, space))}"
        return next((f"at {k!r} {text}" for k in space if (text := describe_mismatch(space[k], observation[k]))), None)
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, tuple | list) or len(observation) != len(space.spaces):
            return f"is {short(observation)}; the space is a Tuple of {len(space.spaces)}"
        parts = enumerate(zip(space.spaces, observation, strict=True))
        return next((f"at {i} {text}" for i, (part, x) in parts if (text := describe_mismatch(part, x))), None)
    try:
        array = np.asarray(observation)
    except ValueError:  # lists of different lengths
        return f"is {short(observation)}, which has no shape; the space is {space}"
    if array.dtype.kind not in "biuf":
        return f"is {short(observation)}, which is no number; the space is {space}"
    if array.shape != space.shape and not (isinstance(space, spaces.Discrete) and array.size == 1):
        return f"has the shape {array.shape}; the space is {space}"
    if isinstance(space, spaces.Discrete) and not space.start <= array.item() < space.start + space.n:
        return f"is {array.item()}; the space is {space}"
    if space.dtype.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(array, array.astype(space.dtype)):
        return f"holds numbers that {space.dtype} cannot hold; the space is {space}"
    return None


def short(value: Any, length: int = 60) -> str:
    """Return the beginning of repr(value), on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= length else text[:length] + "..."
