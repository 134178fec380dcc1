"""Prompts as token ids, and stop strings in what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anypo.errors import UsageError

Prompt = str | list[dict[str, Any]]
"""Plain text, or chat messages `{"role": ..., "content": ...}`."""


def encode_prompt(tokenizer: Any, prompt: Prompt, name: str) -> list[int]:
    """Return the token ids of a prompt; chat messages go through the chat template, up to where the answer begins.

    Args:
        tokenizer: of the model.
        prompt: text or messages.
        name: of the model in errors.

    Raises:
        UsageError: there is no chat template, it refuses the messages, or the prompt is empty.
    """
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else _encode_chat(tokenizer, prompt, name)
    if not ids:
        raise UsageError(f"the prompt {prompt!r} has no tokens; give at least one character")
    return list(ids)


def _encode_chat(tokenizer: Any, messages: list[dict[str, Any]], name: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            f"the tokenizer of {name} has no chat template; put a chat_template.jinja beside it, "
            "or give prompts as plain text"
        )
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except TemplateError as error:
        raise UsageError(f"the chat template of {name} refuses the messages: {error}") from error


def contain_stop(tokenizer: Any, stops: Sequence[str], rows: list[list[int]]) -> list[bool]:
    """Return whether each row's text now contains a stop string. A character is at most four tokens, so a tail is enough.

    Args:
        tokenizer: of the model.
        stops: the stop strings.
        rows: token ids written so far.
    """
    tail = 4 * max(map(len, stops))
    texts = tokenizer.batch_decode([row[-tail:] for row in rows], clean_up_tokenization_spaces=False)
    return [any(stop in text for stop in stops) for text in texts]
