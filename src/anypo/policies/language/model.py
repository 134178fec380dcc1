"""A causal language model of transformers as a policy."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anypo.errors import UsageError
from anypo.kernels.rms_norm import normalizing, norms
from anypo.kernels.unique_rows import dedupe, unique_rows
from anypo.parts.ops.log_ratio import last_value
from anypo.policies.curvature import Moments, step_products
from anypo.policies.decisions import names_of
from anypo.policies.language.batching import pad
from anypo.policies.language.checkpoint import SETTINGS, VALUE_HEAD, _adapt, _eos, _load, _saved, _value_heads
from anypo.policies.language.filter import Filter
from anypo.policies.language.generate import Sample, generate
from anypo.policies.language.output_head import OFFERED, functionals
from anypo.types import Trajectories

Prompt = str | list[dict[str, Any]]
"""Plain text, or chat messages `{"role": ..., "content": ...}`."""


WIDE = 128
"""Width of the hidden states from which matrix products take most of the time: in bfloat16 a batch of rollout and update takes 0.66 of its
time in float32 at width 128, as long at 64, longer at 32 (a CPU with AVX512-BF16)."""


TILE = {True: 2048, False: 16384}
"""Tokens read together when completions are evaluated: on a CPU (True) what stays in its caches, else enough to fill it."""


READ = ("prompt", "prompt_length", "completion")
"""What of a trace the model reads."""


class LanguageModel(nn.Module):
    """Samples completions and evaluates given ones again, under the same filtered distribution.

    model: a causal language model of transformers, possibly wrapped by peft. tokenizer: its tokenizer. max_new: tokens
    a completion may have when nobody says otherwise. stop: strings that end a completion. slots: completions written at
    a time (None: all that are asked for). checkpointing: compute what a tile of tokens needs for the backward pass again
    instead of keeping it. value: learn V(s_t), a linear
    map of the last hidden state before token t, zero at the start (or several, by their names). Dropout stays off, so kept
    log-probs are exact.
    """

    exact = True
    independent = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        value: bool | Sequence[str] = False,
        filter: Filter | None = None,
        stop: str | Sequence[str] = (),
        max_new: int | None = None,
        slots: int | None = None,
        checkpointing: bool = False,
        name: str = "the model",
    ):
        from anypo.kernels.llama_decode import written

        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.filter = filter or Filter()
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.name = name
        self.eos = _eos(self.inner, tokenizer)
        embedding = self.inner.get_input_embeddings()
        if len(tokenizer) > embedding.num_embeddings:
            raise UsageError(
                f"the tokenizer of {name} has {len(tokenizer)} tokens but the model embeds only "
                f"{embedding.num_embeddings}; use the tokenizer the model was trained with, or resize the embedding"
            )
        self.vocabulary = embedding.num_embeddings
        self.context: int | None = getattr(self.inner.config, "max_position_embeddings", None)
        self.max_new = max_new or min(256, self.context // 2 if self.context else 256)
        self.slots = slots
        self.checkpointing = checkpointing
        self.heads = names_of(value)
        width = self.inner.config.hidden_size
        self.value_head = _value_heads(width, len(self.heads), self.inner.dtype) if self.heads else None
        self.train(False)
        self._split = self._splits()
        self._norms = norms(self.inner)
        self._step = written(self._reader) if self._split else None
        self._reads_positions = "position_ids" in inspect.signature(self._reader.forward).parameters

    def compile_rollouts(self) -> None:
        """From now on the next token is compiled code, for any number of rows and columns, where it is written out. Making it takes
        minutes, and new sizes take some more."""
        if self._step is not None:
            self._step = torch.compile(self._step, dynamic=True)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        lora: dict[str, Any] | None = None,
        value: bool | Sequence[str] = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        max_new: int | None = None,
        slots: int | None = None,
        checkpointing: bool = False,
        seed: int = 0,
        dtype: str = "float32",
    ) -> LanguageModel:
        """The model at `source`: a directory, or a name on the Hugging Face Hub.

        lora: train adapters `dict(r=8, alpha=16, target="all-linear")` on a frozen model (Hu et al. 2021,
        arXiv:2106.09685); missing keys take these values. A source that is itself a peft adapter is loaded with the
        adapter trainable. Sampling settings left out come from a directory written by `save`, else temperature 1,
        everything kept. Raises UsageError where the source cannot be loaded.
        """
        model, tokenizer = _load(str(source), dtype)
        if lora is not None:
            model = _adapt(model, lora, seed)
        settings, head = _saved(Path(source))
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop, "max_new": max_new}
        settings |= {k: v for k, v in given.items() if v is not None}
        filter = Filter(**{k: settings.pop(k) for k in ("temperature", "top_k", "top_p") if k in settings})
        saved = tuple(settings.pop("heads", ("value",))) if head else ()
        policy = cls(
            model,
            tokenizer,
            value=value or saved,
            filter=filter,
            slots=slots,
            checkpointing=checkpointing,
            name=str(source),
            **settings,
        )
        if head and policy.value_head is not None:
            policy.value_head.load_state_dict(head)
        return policy

    # what the model is made of

    @property
    def inner(self) -> Any:
        """The transformers model itself; adapters live inside its layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def _reader(self) -> Any:
        """What reads tokens: the model without its output layer where that is the same thing, else the whole model."""
        return self.inner.base_model if self._split else self.inner

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def large(self) -> bool:
        """Whether its matrix products are what takes the time."""
        return self.inner.config.hidden_size >= WIDE

    def train(self, mode: bool = True) -> LanguageModel:
        """Always evaluation mode: dropout would make the ratio of an unchanged policy differ from 1."""
        return super().train(False)

    @torch.no_grad()
    def _splits(self) -> bool:
        """Whether logits = output layer(last hidden state); false e.g. where a model caps or scales its logits."""
        inner, head = self.inner, self.inner.get_output_embeddings()
        if head is None or inner.base_model is inner:
            return False
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        hidden = getattr(inner.base_model(input_ids=ids), "last_hidden_state", None)
        want = inner(input_ids=ids).logits
        return hidden is not None and torch.allclose(head(hidden), want.to(head.weight.dtype), rtol=1e-4, atol=1e-5)

    # text

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; chat messages go through the chat template, up to where the answer begins."""
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt)["input_ids"]
        elif getattr(self.tokenizer, "chat_template", None) is None:
            raise UsageError(
                f"the tokenizer of {self.name} has no chat template; put a chat_template.jinja beside it, "
                "or give prompts as plain text"
            )
        else:
            ids = self._encode_chat(prompt)
        if not ids:
            raise UsageError(f"the prompt {prompt!r} has no tokens; give at least one character")
        return list(ids)

    def _encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise UsageError(f"the chat template of {self.name} refuses the messages: {error}") from error

    def encode_hint(self, hint: str) -> list[int]:
        """Token ids of text that goes between a prompt and its completion."""
        return list(self.tokenizer(hint, add_special_tokens=False)["input_ids"])

    @property
    def end(self) -> int:
        """The token that ends an answer in data."""
        own = self.tokenizer.eos_token_id
        return self.eos[0] if own is None else own

    def decode(self, ids: Sequence[int] | Int[Tensor, " step"]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pack(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Trajectories:
        """Put token ids of prompts and answers from data into rows."""
        prompt, start = pad(prompts, self.device)
        ids, lengths = pad(answers, self.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return Trajectories(mask=mask, trace={"prompt": prompt, "prompt_length": start, "completion": ids})

    # decisions

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        generator: torch.Generator,
        *,
        samples: int | Sequence[int] = 1,
        max_new: int | None = None,
        greedy: bool = False,
    ) -> Sample:
        """Completions of token-id prompts, `samples` of each (one number, or one per prompt), together in prompt order.

        At most `slots` of them are written at a time: as one ends, the next one waiting begins.
        Raises UsageError for a prompt that leaves no room for `max_new` tokens in the model's context.
        """
        max_new = max_new or self.max_new
        for i, prompt in enumerate(prompts):
            if not self.fits(len(prompt), max_new):
                raise UsageError(f"prompt {i} {self.room(len(prompt), max_new)}")
        with self._fast():
            return generate(
                self._next,
                prompts,
                [samples] * len(prompts) if isinstance(samples, int) else samples,
                generator,
                filter=self.filter,
                max_new=max_new,
                greedy=greedy,
                eos=torch.tensor(self.eos, dtype=torch.long, device=self.device),
                stops=self._stops if self.stop else None,
                slots=self.slots,
            )

    def fits(self, prompt: int, max_new: int) -> bool:
        """Whether a prompt of that many tokens leaves room for max_new further ones."""
        return self.context is None or prompt + max_new <= self.context

    def room(self, prompt: int, max_new: int) -> str:
        """Why a prompt does not fit, to follow its name."""
        return (
            f"has {prompt} tokens, which with {max_new} new ones exceeds the context of {self.context} tokens "
            f"of {self.name}; shorten it or lower max_new"
        )

    @property
    def functionals(self) -> frozenset[str]:
        return frozenset({*OFFERED, *self.heads})

    def evaluate(
        self, b: Trajectories, want: Collection[str], *, layer: int | None = None
    ) -> dict[str, Float[Tensor, "row step"]]:
        """`logp`, `entropy`, `score_norm` and values of the completions in `b.trace`, as wanted; 0 where b.mask is false.

        Passes over prompt + completion, padded on the right: attention is causal, so the padding reaches nothing. Only
        hidden states that predict a decision go through the output layer, in chunks. Equal rows are evaluated once, where many
        are equal. layer: the output layer reads the residual stream after that block (from 0; at most the last but one),
        without the final normalization.
        """
        if missing := set(want) - self.functionals:
            raise UsageError(
                f"this method reads {min(missing)!r}, but the language model has no value head of that name"
            )
        valid = b.valid
        same = dedupe(b.trace, valid)
        if same is not None:
            first, line = same
            one = Trajectories(mask=valid[first], trace={name: b.trace[name][first] for name in READ})
            return {k: x.index_select(0, line) for k, x in self.evaluate(one, want, layer=layer).items()}
        row, step, picked, last = self._states(b, valid, layer, bool(set(self.heads) & set(want)))
        found: dict[str, Tensor] = {}
        if set(OFFERED) & set(want):
            taken = b.trace["completion"][row, step]
            found |= functionals(picked, self._head(layer), taken, self.filter, want, self.vocabulary)
        if self.value_head is not None and set(self.heads) & set(want):
            values = self.value_head(last).to(torch.promote_types(last.dtype, torch.float32))
            found |= {name: values[:, k] for k, name in enumerate(self.heads) if name in want}
        return {k: x.new_zeros(valid.shape).index_put((row, step), x) for k, x in found.items()}

    def _states(
        self, b: Trajectories, valid: Bool[Tensor, "row step"], layer: int | None, values: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(row, step) of every decision, what the output layer reads for it, and the last hidden state.

        Rows of like length are read together, each tile without the padding of longer ones. Prompts that several rows share
        are read once where that saves a twelfth of the tokens.
        """
        from anypo.kernels.kv_cache import opened

        prompt, start = b.trace["prompt"], b.trace["prompt_length"]
        until = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).amax(1)
        with self._fast():
            first, line = unique_rows(torch.cat([start[:, None], prompt], 1))
            saved = int(start.sum() - start[first].sum())
            plain = layer is not None or (self.checkpointing and torch.is_grad_enabled())
            pays = not plain and 12 * saved >= int((start + until).sum())
            if pays and opened(self.inner.config) is not None:
                pieces = self._branches(b, valid, until, prompt[first], start[first], line, values)
            else:
                pieces = [self._read(b, valid, rows, layer, values) for rows in self._tiles(start + until, until > 0)]
        row, step, states, last = zip(*pieces, strict=True)
        return torch.cat(row), torch.cat(step), torch.cat(states), torch.cat(last)

    @contextmanager
    def _fast(self) -> Iterator[None]:
        """Inside, the model attends and, where gradients are taken, normalizes by operations that are faster."""
        from anypo.kernels.kv_cache import attending

        with attending(self.inner.config), normalizing(self._norms if torch.is_grad_enabled() else ()):
            yield

    def _tiles(self, length: Int[Tensor, " row"], used: Bool[Tensor, " row"]) -> list[Int[Tensor, " some"]]:
        """The used rows (one if there is none) by length, as many together as have TILE tokens."""
        order = length.argsort(descending=True, stable=True)
        order = order[used[order]] if bool(used.any()) else order[:1]
        sizes, tile, most = [], 0, 0
        for k in length[order].tolist():
            if not sizes or (tile + 1) * most > TILE[self.device.type == "cpu"]:
                sizes.append(0)
                tile, most = 0, k
            sizes[-1] += 1
            tile += 1
        return list(order.split(sizes))

    def _reads(self, inputs: dict[str, Any]) -> Any:
        """The reader's output; with checkpointing only its inputs and output are kept for the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._read_again, use_reentrant=False, preserve_rng_state=False, **inputs)
        return self._reader(**inputs)

    def _read_again(self, **inputs: Any) -> Any:
        """The reader's output, by the same operations also during the backward pass."""
        with self._fast():
            return self._reader(**inputs)

    def _read(
        self,
        b: Trajectories,
        valid: Bool[Tensor, "row step"],
        rows: Int[Tensor, " some"],
        layer: int | None,
        values: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`_states` of some rows, in one pass over prompt and completion."""
        prompt, start = b.trace["prompt"][rows], b.trace["prompt_length"][rows]
        completion = b.trace["completion"][rows]
        row, step = valid[rows].nonzero(as_tuple=True)
        place = start[row] + step  # where each decision stands in its sequence
        width = int(place.max()) if len(place) else 1  # the last decision itself is never read
        ids = torch.zeros(len(prompt), prompt.shape[1] + completion.shape[1], dtype=torch.long, device=prompt.device)
        ids[:, : prompt.shape[1]] = prompt
        ids.scatter_(1, start[:, None] + torch.arange(completion.shape[1], device=ids.device), completion)
        inner = layer is not None
        more = {"output_hidden_states": True} if inner or (values and not self._split) else {}
        out = self._reads({"input_ids": ids[:, :width], "use_cache": False, **more})
        states = out.last_hidden_state if self._split else out.logits
        last = states if self._split else out.hidden_states[-1] if values else states
        if inner:
            blocks = len(out.hidden_states) - 1
            if blocks < 2:
                raise UsageError(f"{self.name} has a single block, so it has no inner layer to read")
            states = out.hidden_states[min(layer, blocks - 2) + 1]
        return rows[row], step, states[row, place - 1], last[row, place - 1]

    def _branches(
        self,
        b: Trajectories,
        valid: Bool[Tensor, "row step"],
        until: Int[Tensor, " row"],
        prompts: Int[Tensor, "prompt token"],
        size: Int[Tensor, " prompt"],
        line: Int[Tensor, " row"],
        values: bool,
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """`_states`, tile by tile, with every distinct prompt read once; line: the prompt of each row."""
        from anypo.kernels.kv_cache import Rounded, branched

        more = {"output_hidden_states": True} if values and not self._split else {}

        def read(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
            place = {"position_ids": positions} if self._reads_positions else {}
            out = self._reader(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **place, **more
            )
            states = out.last_hidden_state if self._split else out.logits
            return states, states if self._split else out.hidden_states[-1] if values else states

        width = int(size.max())
        column = torch.arange(width, device=line.device) - (width - size)[:, None]  # prompts end together
        ids = prompts.gather(1, column.clamp(min=0))
        cache = Rounded(config=self.inner.config)
        first, first_last = (x[:, -1:] for x in read(ids, column >= 0, column.clamp(min=0), cache))
        pieces = []
        for rows in self._tiles(until, until > 0):
            which, most = line[rows], int(until[rows].max()) - 1  # the last decision itself is never read
            states, last = first[which], first_last[which]
            if most > 0:
                step = torch.arange(most, device=line.device).expand(len(rows), -1)
                mask = torch.cat([column[which] >= 0, torch.ones_like(step, dtype=torch.bool)], 1)
                given = (b.trace["completion"][rows, :most], mask, size[which][:, None] + step, branched(cache, which))
                more_states, more_last = read(*given)
                states, last = torch.cat([states, more_states], 1), torch.cat([last, more_last], 1)
            row, step = valid[rows].nonzero(as_tuple=True)
            pieces.append((rows[row], step, states[row, step], last[row, step]))
        return pieces

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], answers: Sequence[str], at_once: int = 32) -> list[float]:
        """What the first value head gives at the end of each answer: a reward model's score."""
        found: list[float] = []
        for i in range(0, len(prompts), at_once):
            asked = [self.encode(p) for p in prompts[i : i + at_once]]
            b = self.pack(asked, [[*self.encode_hint(a), self.end] for a in answers[i : i + at_once]])
            found += last_value(b, self.evaluate(b, {self.heads[0]})[self.heads[0]]).tolist()
        return found

    def _head(self, layer: int | None = None) -> Any:
        return self.inner.get_output_embeddings() if self._split or layer is not None else _same

    @torch.no_grad()
    def step_products(self, b: Trajectories, moments: Moments | None) -> dict[str, Float[Tensor, "row step"]]:
        """`step_along` and `step_spread` of every decision; see `curvature.products`."""
        if not self._split:
            raise UsageError(
                f"the curvature of a step needs logits that are linear in the last layer; {self.name} bends them"
            )
        assert b.advantage is not None
        valid = b.valid
        row, step, hidden, _ = self._states(b, valid, None, False)
        size = max(1, 2**25 // self.vocabulary)
        pieces = []
        for rows in torch.arange(len(row)).split(size):
            taken = b.trace["completion"][row[rows], step[rows]]
            logps = self.filter(self._head()(hidden[rows]), keep=taken)
            pieces.append(
                step_products(hidden[rows].to(logps.dtype), logps, taken, b.advantage[row[rows], step[rows]], moments)
            )
        found = {k: torch.cat([piece[k] for piece in pieces]) for k in pieces[0]} if pieces else {}
        return {k: x.new_zeros(valid.shape).index_put((row, step), x) for k, x in found.items()}

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        """The output layer's weights, and whether they stand as [width, choice]."""
        return self.inner.get_output_embeddings().weight, False

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """b with every token of its prompt replaced by the end-of-text token with probability `share`."""
        prompt = b.trace["prompt"]
        hidden = torch.rand(prompt.shape, generator=generator).to(prompt.device) < share
        return b.but(trace={**b.trace, "prompt": prompt.masked_fill(hidden, self.eos[0])})

    @torch.no_grad()
    def progress(self, b: Trajectories, segments: int = 4) -> Float[Tensor, "row step"]:
        """C_k - C_{k-1} on the decisions of segment k: how much the segment raised the policy's belief in the right answer.

        C_k = pi(answer | prompt, completion up to cut k, cue), a product over the answer's tokens. Cuts fall so that every
        segment holds about as many of the row's tokens of above-median entropy. Without a cue the completion is the answer
        itself: then C_k is the probability of its rest, and 0 once it went wrong. Trace: answer [N, A] (cue first),
        answer_length [N], cue_length [N] (-1 without a cue).
        Source: GRPO-VPS, arXiv 2604.20659.
        """
        if "answer" not in b.trace:
            raise UsageError("the method measures progress towards a known answer, and the records have no `answer`")
        valid, trace = b.valid, b.trace
        part = _segments(self.evaluate(b, {"entropy"})["entropy"], valid, segments)
        cuts = torch.stack([(valid & (part < k)).sum(1) for k in range(segments + 1)], 1)
        belief = torch.stack([self._belief(trace, cuts[:, k]) for k in range(segments + 1)], 1)
        gain = belief.diff(dim=1)
        return torch.where(valid, gain.gather(1, part.clamp(max=segments - 1)), 0.0)

    @torch.no_grad()
    def mismatched(self, b: Trajectories) -> Float[Tensor, " row"]:
        """log pi (nats) of another answer after each row's prompt: that of the next row of another group, around the end.

        Source: KTO, arXiv 2402.01306, sec. 4.2.
        """
        rows = torch.arange(b.shape[0], device=b.valid.device)
        after = (rows - rows[:, None] - 1) % len(rows)  # how many rows further
        same = torch.zeros_like(after, dtype=torch.bool) if b.group is None else b.group[:, None] == b.group
        after = torch.where(same & ~same.all(), len(rows) + after, after)
        other = after.argmin(1)
        swapped = Trajectories(
            mask=b.valid[other],
            trace={name: b.trace[name] for name in ("prompt", "prompt_length")}
            | {"completion": b.trace["completion"][other]},
        )
        pieces = rows.split(max(1, 16384 // max(b.shape[1], 1)))
        return torch.cat([self.evaluate(swapped.rows(some), {"logp"})["logp"].sum(1) for some in pieces])

    def _belief(self, trace: dict[str, Tensor], cut: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """pi(answer | prompt, the first `cut` tokens of the completion, cue)."""
        answer, length, cue = trace["answer"], trace["answer_length"], trace["cue_length"]
        place = torch.arange(answer.shape[1], device=answer.device)
        direct = cue < 0
        given = torch.where(direct, cut.minimum(length), cue)  # what of `answer` is not asked for
        prompt, start = trace["prompt"], trace["prompt_length"]
        width = prompt.shape[1] + trace["completion"].shape[1]
        ids = torch.zeros(len(prompt), width, dtype=torch.long, device=prompt.device)
        ids[:, : prompt.shape[1]] = prompt
        ids.scatter_(
            1, start[:, None] + torch.arange(trace["completion"].shape[1], device=ids.device), trace["completion"]
        )
        probe = Trajectories(
            mask=(place >= given[:, None]) & (place < length[:, None]),
            trace={"prompt": ids, "prompt_length": start + torch.where(direct, 0, cut), "completion": answer},
        )
        logp = self.evaluate(probe, {"logp"})["logp"].sum(1)
        said = torch.nn.functional.pad(trace["completion"], (0, max(0, answer.shape[1] - trace["completion"].shape[1])))
        right = (said[:, : answer.shape[1]] == answer) | (place >= cut.minimum(length)[:, None])
        return torch.where(direct & ~right.all(1), 0.0, logp.exp())

    def observe(self, b: Trajectories) -> None:
        """Nothing to learn about token ids."""

    def _next(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits after the last token of each row, and the cache to go on with."""
        from anypo.kernels.kv_cache import opened

        if cache is not None and self._step is not None:
            return self.inner.get_output_embeddings()(self._step(ids, mask, positions, cache)), cache
        cache = opened(self.inner.config) if cache is None else cache
        more = {"position_ids": positions} if self._reads_positions else {}
        out = self._reader(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        if self._split:
            return self.inner.get_output_embeddings()(out.last_hidden_state[:, -1]), out.past_key_values
        return out.logits[:, -1], out.past_key_values

    def _stops(self, rows: list[list[int]]) -> list[bool]:
        """Whether a row's text now contains a stop string. A character is at most four tokens, so a tail is enough."""
        tail = 4 * max(map(len, self.stop))
        texts = self.tokenizer.batch_decode([row[-tail:] for row in rows], clean_up_tokenization_spaces=False)
        return [any(s in text for s in self.stop) for text in texts]

    # files

    def save(self, directory: str | Path) -> None:
        """Write a directory that plain transformers loads, and that `LanguageModel.load` restores with all settings.

        A model with adapters is written merged; the adapter alone goes to `adapter/`, where `load` makes it trainable
        again.
        """
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        model = self.model
        if hasattr(model, "peft_config"):
            model.save_pretrained(directory / "adapter")
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        settings = asdict(self.filter) | {"stop": self.stop, "max_new": self.max_new, "heads": self.heads}
        (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        if self.value_head is not None:
            save_file({k: v.contiguous() for k, v in self.value_head.state_dict().items()}, directory / VALUE_HEAD)


def _segments(entropy: Tensor, valid: Tensor, segments: int) -> Int[Tensor, "row step"]:
    """Segment index of every decision; tokens of above-median entropy are spread evenly over a row's segments."""
    median = torch.where(valid, entropy, torch.nan).nanmedian(1, keepdim=True).values
    high = valid & (entropy >= median)
    before = high.cumsum(1) - high.long()
    return (segments * before // high.sum(1, keepdim=True).clamp(min=1)).clamp(max=segments - 1)


def _same(x: Tensor) -> Tensor:
    return x
