"""A causal language model of transformers as a policy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.kernels.unique_rows import dedupe
from anypo.networks import Carried, Sizes
from anypo.policies.curvature import Moments
from anypo.policies.decisions import names_of
from anypo.policies.language import probes
from anypo.policies.language.backbone import Backbone, end_tokens, make_value_heads
from anypo.policies.language.batching import pad
from anypo.policies.language.checkpoint import add_adapters, load_pretrained, load_settings, save_policy
from anypo.policies.language.filter import Filter, KnownTokens, find_unknown
from anypo.policies.language.forward import States, decision_states
from anypo.policies.language.generate import Sample, generate
from anypo.policies.language.output_head import OFFERED, functionals
from anypo.policies.language.text import Prompt, TextCodec, contain_stop
from anypo.ranges import Count, Filled, NonNegative, Positive, Range
from anypo.types import Trajectories
from anypo.views import Network

READ = ("prompt", "prompt_length", "completion")
"""What of a trace the model reads."""


class LanguageModel(nn.Module):
    """Samples completions and evaluates given ones again, under the same filtered distribution.

    model: a causal language model of transformers, possibly wrapped by peft. tokenizer: its tokenizer. max_new: tokens a completion may
    have by default. stop: strings that end a completion. slots: completions written at a time (None: all that are asked for).
    checkpointing: see `Backbone`. value: learn V(s_t), a linear map of the last hidden state before token t, zero at the start (or
    several, by their names). networks: networks beside the model, each with a hidden layer of the model's width, which read that hidden
    state as a constant; `seed` is that of their weights. Dropout stays off, so kept log-probs are exact.
    """

    exact = True
    independent = False
    unknown: Tensor | None

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
        networks: Mapping[str, Network] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.backbone = Backbone(model, name, checkpointing)
        self.filter = filter or Filter()
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.name = name
        self.codec = TextCodec(tokenizer, name)
        self.eos = end_tokens(self.inner, tokenizer, self.codec.turn_end)
        self.vocabulary = self.backbone.vocabulary
        if len(tokenizer) > self.vocabulary:
            raise UsageError(
                f"the tokenizer of {name} has {len(tokenizer)} tokens but the model embeds only "
                f"{self.vocabulary}; use the tokenizer the model was trained with, or resize the embedding"
            )
        self.register_buffer("unknown", find_unknown(tokenizer, self.vocabulary), persistent=False)
        self.context: int | None = getattr(self.inner.config, "max_position_embeddings", None)
        self.max_new = max_new or min(256, self.context // 2 if self.context else 256)
        self.slots = slots
        self.heads = names_of(value)
        width = self.inner.config.hidden_size
        self.value_head = make_value_heads(width, len(self.heads), self.inner.dtype) if self.heads else None
        sizes, generator = Sizes(width, hidden=(width,)), torch.Generator().manual_seed(seed)
        self.critics = Carried(networks or {}, ("obs",), sizes, generator)
        self.networks = self.critics.specs
        self.train(False)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        lora: dict[str, Any] | None = None,
        value: bool | Sequence[str] = False,
        networks: Mapping[str, Network] | None = None,
        temperature: Positive[float] | None = None,
        top_k: NonNegative[int] | None = None,
        top_p: Annotated[float, Range(above=0, most=1)] | None = None,
        stop: Filled[str] | Sequence[Filled[str]] | None = None,
        max_new: Count[int] | None = None,
        slots: Count[int] | None = None,
        checkpointing: bool = False,
        seed: int = 0,
        dtype: str = "float32",
    ) -> LanguageModel:
        """Load the model at `source`: a directory, or a name on the Hugging Face Hub.

        lora: train adapters `dict(r=8, alpha=16, target="all-linear")`, see `add_adapters`; missing keys take these values. A source that
        is itself a peft adapter is loaded with the adapter trainable. Sampling settings left out come from a directory written by
        `save`, else temperature 1, everything kept. Raises UsageError where the source cannot be loaded.
        """
        model, tokenizer = load_pretrained(str(source), dtype)
        model = model if lora is None else add_adapters(model, lora, seed)
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop, "max_new": max_new}
        settings, head = load_settings(Path(source), options)
        saved, settings["value"] = settings["value"], value or settings["value"]
        settings |= {"networks": networks, "seed": seed}
        policy = cls(model, tokenizer, slots=slots, checkpointing=checkpointing, name=str(source), **settings)
        if policy.value_head is not None and policy.heads == saved:
            policy.value_head.load_state_dict(head)
        return policy

    def save(self, directory: str | Path) -> None:
        """Write a directory that plain transformers loads, and that `LanguageModel.load` restores with all settings.

        A model with adapters is written merged; the adapter alone goes to `adapter/`, where `load` makes it trainable
        again.
        """
        settings = asdict(self.filter) | {"stop": self.stop, "max_new": self.max_new, "heads": self.heads}
        save_policy(Path(directory), self.model, self.tokenizer, settings, self.value_head)

    @property
    def inner(self) -> Any:
        """The transformers model itself; adapters are inside its layers."""
        return self.backbone.inner

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def large(self) -> bool:
        """Whether matrix products take most of the time."""
        return self.backbone.large

    def train(self, mode: bool = True) -> LanguageModel:
        """Stay in evaluation mode: dropout would make the ratio of an unchanged policy differ from 1."""
        return super().train(False)

    def compile_rollouts(self) -> None:
        """Compile how the next token is written, where it is written out; that takes minutes, and new sizes take some more."""
        if self.backbone.step is not None:
            self.backbone.step = torch.compile(self.backbone.step, dynamic=True)

    @property
    def distribution(self) -> Filter:
        """The filter, over the tokens that have text."""
        return self.filter if self.unknown is None else KnownTokens(**asdict(self.filter), unknown=self.unknown)

    def encode(self, prompt: Prompt, tools: Sequence[Any] | None = None) -> list[int]:
        """See `TextCodec.encode_prompt`."""
        return self.codec.encode_prompt(prompt, tools)

    def encode_hint(self, hint: str) -> list[int]:
        """Return the token ids of text that goes between a prompt and its completion."""
        return self.codec.encode_text(hint)

    def encode_answer(self, prompt: Prompt, answer: str, tools: Sequence[Any] | None = None) -> list[int]:
        """See `TextCodec.encode_answer`."""
        return self.codec.encode_answer(prompt, answer, (self.end, *self.eos), tools)

    @property
    def end(self) -> int:
        """The token that ends plain text."""
        return self.eos[0] if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id

    def decode(self, ids: Sequence[int] | Int[Tensor, " step"]) -> str:
        """Return the text of token ids; a token that ends it, and padding, are left out."""
        return self.codec.decode(ids.tolist() if isinstance(ids, Tensor) else ids, self.eos)

    def pack(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Trajectories:
        """Put token ids of prompts and answers from data into rows."""
        prompt, start = pad(prompts, self.device)
        ids, lengths = pad(answers, self.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return Trajectories(mask=mask, trace={"prompt": prompt, "prompt_length": start, "completion": ids})

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Int[Tensor, " row"] | None,
        *,
        samples: int | Sequence[int] = 1,
        max_new: int | None = None,
        greedy: bool = False,
    ) -> Sample:
        """Sample completions of token-id prompts, `samples` of each (one number, or one per prompt), together in prompt order.

        seeds: of the rows' streams of random numbers; greedy completions need none. At most `slots` are written at a time.
        Raises UsageError for a prompt that leaves no room for `max_new` tokens in the model's context.
        """
        max_new = max_new or self.max_new
        for i, prompt in enumerate(prompts):
            if not self.fits(len(prompt), max_new):
                raise UsageError(f"prompt {i} {self.room(len(prompt), max_new)}")
        with self.backbone.fast():
            return generate(
                self.backbone.next_logits,
                prompts,
                [samples] * len(prompts) if isinstance(samples, int) else samples,
                seeds,
                filter=self.distribution,
                max_new=max_new,
                greedy=greedy,
                eos=torch.tensor(self.eos, dtype=torch.long, device=self.device),
                stops=partial(contain_stop, self.tokenizer, self.stop) if self.stop else None,
                slots=self.slots,
            )

    def fits(self, prompt: int, max_new: int) -> bool:
        """Return whether a prompt of that many tokens leaves room for max_new further ones."""
        return self.context is None or prompt + max_new <= self.context

    def room(self, prompt: int, max_new: int) -> str:
        """Say why a prompt does not fit, to follow its name."""
        return (
            f"has {prompt} tokens, which with {max_new} new ones exceeds the context of {self.context} tokens "
            f"of {self.name}; shorten it or lower max_new"
        )

    @property
    def functionals(self) -> frozenset[str]:
        return frozenset({*OFFERED, *self.heads, *self.critics.outputs})

    def evaluate(
        self, b: Trajectories, want: Collection[str], *, layer: int | None = None, temperature: float | None = None
    ) -> dict[str, Float[Tensor, "row step ..."]]:
        """Compute `logp`, `entropy`, `score_norm` and values of the completions in `b.trace`, as wanted; 0 where b.mask is false.

        Passes over prompt + completion, padded on the right: attention is causal, so the padding reaches nothing. Only
        hidden states that predict a decision go through the output layer, in chunks. Equal rows are evaluated once, where many
        are equal. layer: the output layer reads the residual stream after that block (from 0; at most the last but one),
        without the final normalization. temperature: of the distribution, instead of that of sampling.
        """
        if missing := set(want) - self.functionals:
            raise UsageError(
                f"this method reads {min(missing)!r}, but the language model has no value head of that name"
            )
        valid = b.valid
        same = dedupe(b.trace, valid)
        if same is not None:
            first, kind = same
            kinds = Trajectories(mask=valid[first], trace={name: b.trace[name][first] for name in READ})
            values = self.evaluate(kinds, want, layer=layer, temperature=temperature)
            return {k: x.index_select(0, kind) for k, x in values.items()}
        states = decision_states(self.backbone, b, layer, values=not set(want) <= {*OFFERED})
        values = read_states(self, states, b, want, layer, temperature)
        return {k: x.new_zeros(*valid.shape, *x.shape[1:]).index_put(states[:2], x) for k, x in values.items()}

    def observe(self, b: Trajectories) -> None:
        """Do nothing: token ids have no statistics to learn."""

    def last_layer(self) -> tuple[nn.Parameter, bool]:
        """Return the output layer's weights, and whether they are [width, choice]."""
        return self.inner.get_output_embeddings().weight, False

    def step_products(self, b: Trajectories, moments: Moments | None) -> dict[str, Float[Tensor, "row step"]]:
        """See `probes.curvature_products`."""
        return probes.curvature_products(self.backbone, self.distribution, b, moments)

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """See `probes.hide_prompt_tokens`."""
        return probes.hide_prompt_tokens(b, self.eos[0], share, generator)

    def progress(self, b: Trajectories) -> Float[Tensor, "row step"]:
        """See `probes.answer_progress`."""
        return probes.answer_progress(self, b)

    def mismatched(self, b: Trajectories) -> Float[Tensor, " row"]:
        """See `probes.mismatched_logp`."""
        return probes.mismatched_logp(self, b)


def read_states(
    policy: LanguageModel,
    states: States,
    b: Trajectories,
    want: Collection[str],
    layer: int | None,
    temperature: float | None,
) -> dict[str, Float[Tensor, "decision ..."]]:
    """Compute functionals of decisions from the hidden states before them.

    Args:
        policy: whose output layer, value heads and networks read the states.
        states: of all decisions.
        b: the rows they are of.
        want: names of functionals.
        layer, temperature: as for `LanguageModel.evaluate`.
    """
    values: dict[str, Tensor] = {}
    if set(OFFERED) & set(want):
        taken = b.trace["completion"][states.row, states.step]
        filter = policy.distribution if temperature is None else replace(policy.distribution, temperature=temperature)
        values |= functionals(states.read, policy.backbone.head(layer), taken, filter, want, policy.vocabulary)
    if policy.value_head is not None and set(policy.heads) & set(want):
        dtype = policy.value_head.weight.dtype
        v = policy.value_head(states.last.to(dtype)).to(dtype)
        values |= {name: v[:, k] for k, name in enumerate(policy.heads) if name in want}
    return values | policy.critics.evaluate(want, lambda key: states.last.detach().to(policy.critics.dtype))
