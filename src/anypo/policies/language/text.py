"""Prompts and answers as token ids and back, as a tokenizer and its chat template have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from anypo.errors import UsageError

Messages = list[dict[str, Any]]
"""Chat messages `{"role": ..., "content": ...}`."""

Prompt = str | Messages
"""Plain text, or chat messages, of which the last one may be an answer that was begun."""

MARK = "anypo"
"""An answer whose end is looked for in what the chat template makes of it."""

SURROGATE = re.compile(r"[\ud800-\udfff]")


class TextCodec:
    """Encodes for one model. turn_end: the token by which the chat template ends an answer (None: there is none)."""

    def __init__(self, tokenizer: Any, name: str):
        self.tokenizer, self.name = tokenizer, name
        self.turn_end = self._find_turn_end()

    def _find_turn_end(self) -> int | None:
        """Return the first token after an answer, where it is one of those added to the vocabulary, which no text contains."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return None
        try:
            chat = self._render([{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}], None, False)
        except UsageError:  # a template for other chats
            return None
        ids = self.encode_text(chat.rpartition(MARK)[2].lstrip())
        return ids[0] if ids and ids[0] in self.tokenizer.added_tokens_decoder else None

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(self, prompt: Prompt, tools: Sequence[Any] | None = None) -> list[int]:
        """Return the token ids of a prompt; chat messages go through the chat template, up to where the answer goes on.

        Args:
            prompt: text or messages.
            tools: for the chat template.

        Raises:
            UsageError: there is no chat template, it refuses the messages, the text is not whole, or the prompt is empty.
        """
        if isinstance(prompt, str):
            check_whole(prompt, "the prompt")
            ids = self._encode_plain(prompt)
        else:
            ids = self.encode_text(self._render(prompt, tools, True))
        if not ids:
            raise UsageError(f"the prompt {prompt!r} has no tokens; give at least one character")
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """Return the token ids of text, after what the tokenizer puts in front unless that is written out; what it puts behind, which would
        end the text, is left out."""
        ids, whole = self.encode_text(text), list(self.tokenizer(text)["input_ids"])
        for start in range(len(whole) - len(ids) + 1):
            if whole[start : start + len(ids)] == ids:
                added = whole[:start]
                return ids if ids[:start] == added else added + ids
        return whole

    def encode_answer(
        self, prompt: Prompt, answer: str, ends: Sequence[int], tools: Sequence[Any] | None = None
    ) -> list[int]:
        """Return the token ids of an answer in data, with exactly one token that ends it: what the chat template writes after the
        prompt, up to its first end; after a plain prompt, or where the template has no end, the end-of-text token.

        Args:
            prompt: what is answered.
            answer: text; an end it brings itself is not repeated.
            ends: tokens that end a completion; the first is the one of plain text.
            tools: for the chat template.
        """
        answer = self._without_ends(answer, ends)
        if isinstance(prompt, str):
            return [*self.encode_text(answer), ends[0]]
        before = self._render(prompt, tools, True)
        begun = prompt[-1]["content"] if is_begun(prompt) else ""
        message = {"role": "assistant", "content": begun + answer}
        after = self._render([*(prompt[:-1] if begun else prompt), message], tools, False)
        if not after.startswith(before):  # the template treats a last answer in its own way
            return [*self.encode_text(answer), ends[0] if self.turn_end is None else self.turn_end]
        ids = self.encode_text(after[len(before) :])
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        return [*ids, ends[0]] if end is None else ids[: end + 1]

    def _without_ends(self, answer: str, ends: Sequence[int]) -> str:
        names = [self.tokenizer.convert_ids_to_tokens(token) for token in ends]
        while name := next((name for name in names if name and answer.rstrip().endswith(name)), None):
            answer = answer.rstrip().removesuffix(name)
        return answer

    def decode(self, ids: Sequence[int], ends: Collection[int]) -> str:
        """Return the text of token ids, special tokens included; the `ends` and padding behind it are left out."""
        length = len(ids)
        while length and (ids[length - 1] in ends or ids[length - 1] == self.tokenizer.pad_token_id):
            length -= 1
        return self.tokenizer.decode(ids[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _render(self, messages: Messages, tools: Sequence[Any] | None, prompting: bool) -> str:
        """Return the text the chat template makes of messages: `prompting`, up to where the answer goes on, else all of it."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise UsageError(
                f"the tokenizer of {self.name} has no chat template; put a chat_template.jinja beside it, "
                "or give prompts as plain text"
            )
        from jinja2 import TemplateError

        for message in messages:
            check_whole(message.get("content"), "a message")
        begun = prompting and is_begun(messages)
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompting and not begun,
                continue_final_message=begun,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise UsageError(
                f"the chat template of {self.name} refuses the messages: {str(error).splitlines()[0]}"
            ) from error


def is_begun(messages: Messages) -> bool:
    """Whether the last message is an answer that goes on."""
    return messages[-1]["role"] == "assistant" and bool(messages[-1].get("content"))


def check_whole(text: Any, where: str) -> None:
    """Raise UsageError, saying where, for text with half a surrogate pair, which no tokenizer reads."""
    if isinstance(text, str) and (half := SURROGATE.search(text)):
        raise UsageError(f"{where} has half a surrogate pair (\\u{ord(half[0]):x}); write the whole character")


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
