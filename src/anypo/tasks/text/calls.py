"""Calls of reward functions: where they run, for how long, and how they leave.

A synchronous function runs in the thread that trains, in a program the main thread; asynchronous ones run on one event loop of that
thread, which lasts as long as the process. So signals, thread-locals, context variables, database handles, closures and cached clients
work as in the user's own script, nothing is pickled or kept twice, and a call costs no process. A child process could be killed, but
could use neither a GPU nor torch's threads after a fork, and what a closure collects would be lost in it.

A time limit is a signal here, which Python handles between two instructions, when a system call is interrupted and in matching
regular expressions: a call into other code that does neither is stopped when it returns. Outside of the main thread no signal arrives,
so synchronous functions have no time limit there.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import math
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

SIGNAL = signal.SIGVTALRM
"""The signal of time limits; SIGALRM is left to reward functions, such as those that call math-verify."""

AGAIN = 1.0
"""Seconds until a call that goes on is stopped once more, after it caught the first signal."""


class TooSlow(Exception):
    """A call took longer than it may."""


class _Expired(BaseException):
    """The time limit of the present call is over; a function's `except Exception` does not catch it."""


class _Interrupted(KeyboardInterrupt):
    """The user's own interrupt, which a KeyboardInterrupt that a function raises is not."""


class _Local(threading.local):
    """The deadline of the present call of a thread, and the event loop of its asynchronous calls."""

    deadline: float | None = None
    runner: asyncio.Runner | None = None


_local = _Local()


def call_each(
    fn: Callable[..., Any], calls: Sequence[dict[str, Any]], seconds: float, at_once: int = 8
) -> list[Any | BaseException]:
    """Call fn with each set of keywords, one after the other; return what each call returned or the exception it ended with.

    Args:
        fn: the function; an asynchronous one is awaited.
        calls: the keywords of each call.
        seconds: the time limit of one call, which ends in TooSlow.
        at_once: asynchronous calls that run at the same time.
    """
    own_loop()
    outcomes = [attempt(lambda keywords=keywords: fn(**keywords), seconds) for keywords in calls]
    waiting = {i: x for i, x in enumerate(outcomes) if inspect.isawaitable(x)}
    if waiting:
        limit = seconds * math.ceil(len(waiting) / at_once) + AGAIN  # for code that blocks the loop
        awaited = attempt(lambda: _run_on_loop(_await_all(list(waiting.values()), seconds, at_once)), limit)
        results = [awaited] * len(waiting) if isinstance(awaited, BaseException) else awaited
        for i, result in zip(waiting, results, strict=True):
            outcomes[i] = result
    return outcomes


def attempt(call: Callable[[], Any], seconds: float) -> Any | BaseException:
    """Return what a call returns, or the exception it ends with: TooSlow where it takes longer. The user's interrupt is raised."""
    start = time.monotonic()
    try:
        outcome = _call_within(call, seconds) if _in_main_thread() else call()
    except _Interrupted:
        raise KeyboardInterrupt from None
    except _Expired:
        return TooSlow()
    except BaseException as error:  # SystemExit, CancelledError and the like end a call, not the program
        return error
    late = _in_main_thread() and time.monotonic() - start > seconds
    return TooSlow() if late else outcome


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _call_within(call: Callable[[], Any], seconds: float) -> Any:
    """Return call(), or raise _Expired in it once the seconds are over."""
    interrupt, over = signal.getsignal(signal.SIGINT), threading.Event()
    signal.signal(SIGNAL, _expire)  # stays, so that a late signal finds a handler
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # the thread's clock stops calls that wait, the processor's clock those that never let another thread run
    threading.Thread(target=_knock, args=(over, seconds), daemon=True).start()
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, AGAIN)
    _local.deadline = time.monotonic() + seconds
    try:
        return call()
    finally:
        _local.deadline = None
        over.set()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)


def _expire(*_: Any) -> None:
    if _local.deadline is not None and time.monotonic() >= _local.deadline:
        raise _Expired


def _interrupt(*_: Any) -> None:
    raise _Interrupted


def _knock(over: threading.Event, seconds: float) -> None:
    """Send the main thread the signal after so many seconds, and again until the call is over."""
    while not over.wait(seconds):
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        seconds = AGAIN


def own_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that serves asynchronous functions of this thread, made where there is none, as the current one."""
    if _local.runner is None:
        _local.runner = asyncio.Runner()
        atexit.register(_local.runner.close)
    loop = _local.runner.get_loop()
    asyncio.set_event_loop(loop)  # a function that calls asyncio.run leaves none
    return loop


def _run_on_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run work to its end, also in a notebook, where another loop is running in this thread."""
    loop, outer = own_loop(), asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    task = loop.create_task(work)
    try:
        return loop.run_until_complete(task)
    finally:
        if not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.wait([task], timeout=AGAIN))
        asyncio._set_running_loop(outer)


async def _await_all(waiting: Sequence[Awaitable[Any]], seconds: float, at_once: int) -> list[Any | BaseException]:
    """Return what each awaitable gives, or the exception it ends with; at most `at_once` run at a time, each for so many seconds."""
    gate = asyncio.Semaphore(at_once)

    async def one(x: Awaitable[Any]) -> Any | BaseException:
        async with gate:
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await x
            except _Interrupted:
                raise
            except BaseException as error:
                return TooSlow() if limit.expired() or isinstance(error, _Expired) else error

    return await asyncio.gather(*map(one, waiting))
