"""Small tasks with exact answers, for the laboratory: hidden codes, and sequences whose outcomes can be enumerated."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.policies.tabular import SoftmaxTable
from anypo.policies.weights import snapshot, swap_params
from anypo.rng import Rng, RowRng, request_seeds
from anypo.types import Request, Trajectories


class Toy:
    """Base of the toys: integer observations for a softmax table, no state to save, starts without end."""

    metric = "success"
    unit = "batches"
    continuing = False
    channels: tuple[str, ...] = ("score",)
    default_policy = "table"
    starts: int
    states: int
    symbols: int
    horizon: int
    sync: int
    noise_logp: float

    def policy(self, heads: tuple[str, ...], seed: int) -> SoftmaxTable:
        return SoftmaxTable(self.states, self.symbols, value=heads, seed=seed)

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        return {"horizon": self.horizon}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the task is a function of its settings."""

    def rollout(
        self, policy: SoftmaxTable, requests: list[Request], seed: int
    ) -> tuple[Trajectories, dict[str, float]]:
        """Sample rows with the policy's weights of the last synchronisation, every `sync` rollouts."""
        if self.rollouts % self.sync == 0:
            self.stale = snapshot(policy)
        self.rollouts += 1
        rng = RowRng(request_seeds(seed, requests), self.horizon)
        with swap_params(policy, self.stale):
            b, metrics = self.play(policy, requests, rng)
        if self.noise_logp:
            logp_old = b.need("logp_old")
            b = b.but(logp_old=logp_old + self.noise_logp * rng.randn(logp_old.shape[1]))
        return b, metrics

    rollouts = 0
    stale: dict[str, Tensor]

    def play(self, policy: SoftmaxTable, requests: list[Request], rng: RowRng) -> tuple[Trajectories, dict[str, float]]:
        raise NotImplementedError


class Codes(Toy):
    """`problems` hidden codes of `length` symbols out of `symbols`; the policy sees problem, position and, with `alive`, whether
    all symbols so far were right. The score is 1 iff all are right.

    share: the score is the share of right symbols instead. graded: code lengths run from 1 to `length`, easy to hard. slack: so
    many neighbours of the right symbol are right too. filler: a further symbol advances nothing, and there is room for as many
    fillers as symbols: length is free. critical: only the symbol at this position counts. parts: outcome channels, one per
    stretch of the code, the k-th worth `scale`^k. noise, tail, flips: scores get Gaussian noise, noise from a t distribution
    with 2 degrees of freedom, or are inverted with this probability. quality: share of right symbols in demonstrations.
    sync: rollouts between synchronisations of the sampling policy; noise_logp: error of its reported log-probabilities.
    head: probability mass that the initial policy gives to the right symbol of every position.
    """

    name = "codes"

    def __init__(
        self,
        *,
        problems: int = 16,
        length: int = 4,
        symbols: int = 4,
        alive: bool = True,
        share: bool = False,
        graded: bool = False,
        slack: int = 0,
        filler: bool = False,
        critical: int | None = None,
        parts: int = 1,
        scale: float = 1.0,
        noise: float = 0.0,
        tail: float = 0.0,
        flips: float = 0.0,
        quality: float = 1.0,
        sync: int = 1,
        noise_logp: float = 0.0,
        head: float | None = None,
        seed: int = 0,
    ):
        self.starts, self.length, self.code_symbols = problems, length, symbols
        self.alive, self.share, self.slack, self.filler, self.critical = alive, share, slack, filler, critical
        self.parts, self.scale, self.quality = parts, scale, quality
        self.noise, self.tail, self.flips = noise, tail, flips
        self.sync, self.noise_logp, self.head = sync, noise_logp, head
        self.symbols = symbols + filler
        self.horizon = 2 * length if filler else length
        self.channels = tuple(f"part{k}" for k in range(parts)) if parts > 1 else ("score",)
        g = torch.Generator().manual_seed(seed)
        self.codes = torch.randint(symbols, (problems, length), generator=g)
        equal = torch.full((problems,), length)
        self.lengths = 1 + torch.arange(problems) * length // problems if graded else equal
        self.states = problems * length * 2

    def policy(self, heads: tuple[str, ...], seed: int) -> SoftmaxTable:
        policy = super().policy(heads, seed)
        if self.head is not None:  # softmax with mass `head` on the right symbol: logit log(p (A-1) / (1-p))
            lift = math.log(self.head * (self.symbols - 1) / (1 - self.head))
            problem, position = torch.meshgrid(torch.arange(self.starts), torch.arange(self.length), indexing="ij")
            with torch.no_grad():
                for alive in (0, 1):
                    obs = self.observe(problem, position, torch.full_like(problem, alive))
                    policy.logits[obs, self.codes] += lift
        return policy

    def observe(self, problem: Tensor, position: Tensor, alive: Tensor) -> Tensor:
        alive = alive.long() if self.alive else torch.ones_like(problem)
        return (problem * self.length + position.clamp(max=self.length - 1)) * 2 + alive

    def right(self, problem: Tensor, position: Tensor, symbol: Tensor) -> Tensor:
        expected = self.codes[problem, position.clamp(max=self.length - 1)]
        return ((symbol - expected) % self.code_symbols <= self.slack) & (symbol < self.code_symbols)

    def play(self, policy: SoftmaxTable, requests: list[Request], rng: RowRng) -> tuple[Trajectories, dict[str, float]]:
        samples = torch.tensor([r.samples for r in requests])
        group = torch.arange(len(requests)).repeat_interleave(samples)
        problem = torch.tensor([r.start for r in requests])[group]
        hint = torch.tensor([float(r.hint or 0.0) for r in requests])[group]
        ends = self.lengths[problem]
        first = (hint * ends).floor().long()
        position, alive = first.clone(), torch.ones_like(problem, dtype=torch.bool)
        hits = torch.arange(self.length) < first[:, None]
        log: dict[str, list[Tensor]] = {"obs": [], "action": [], "logp": [], "value": [], "mask": [], "position": []}
        for t in range(self.horizon):
            rng.at(t)
            obs, live = self.observe(problem, position, alive), position < ends
            decision = policy.act(obs, rng)
            moves = live & (decision.action < self.code_symbols)
            good = self.right(problem, position, decision.action)
            row = moves.nonzero()[:, 0]
            hits[row, position[row]] = good[row]
            entries = [obs, decision.action, decision.logp, decision.value, live, position]
            for name, entry in zip(log, entries, strict=True):
                if entry is not None:
                    log[name].append(entry)
            alive, position = alive & (good | ~moves), position + moves.long()
        t = {name: torch.stack(entries, 1) for name, entries in log.items() if entries}
        scores = self.noisy_scores(problem, hits, position >= ends, rng)
        mask = t["mask"]
        b = Trajectories(
            logp_old=torch.where(mask, t["logp"], 0.0),
            value=t.get("value"),
            mask=mask,
            score=scores.sum(1),
            scores=scores,
            group=group,
            segment=t["position"],
            truncated=position < ends,
            trace={"obs": t["obs"], "action": t["action"]},
        )
        if not self.filler:
            step = (first[:, None] + torch.arange(self.horizon)).clamp(max=self.length - 1)
            wide = problem[:, None].expand_as(step)
            b.trace["answer"] = self.codes[wide, step]
            b.trace["answer_obs"] = self.observe(wide, step, torch.ones_like(step))
        done = (hits | (torch.arange(self.length) >= ends[:, None])).all(1) & (position >= ends)
        size = mask.sum(1).float()
        metrics = {"success": float(done.float().mean()), "length": float(size.mean()), "env_steps": float(mask.sum())}
        for name, selected in (("length_right", done), ("length_wrong", ~done)):
            metrics[name] = float(size[selected].mean()) if bool(selected.any()) else float(size.mean())
        return b, metrics

    def noisy_scores(
        self, problem: Tensor, hits: Tensor, complete: Tensor, rng: RowRng
    ) -> Float[Tensor, "row channel"]:
        """Score finished rows in every channel, with the task's noise."""
        ends = self.lengths[problem][:, None]
        place = torch.arange(self.length)
        counted = place < ends
        if self.critical is not None:
            counted = counted & (place == self.critical)
        stretches = [counted & (place * self.parts // self.length == k) for k in range(self.parts)]
        channels = []
        for k, stretch in enumerate(stretches):
            good = (hits & stretch).sum(1) / stretch.sum(1).clamp(min=1)
            channels.append(self.scale**k * (good if self.share else (good == 1).float() * complete))
        scores = torch.stack(channels, 1)
        if self.flips:
            wrong = rng.rand(self.parts) < self.flips
            scores = torch.where(wrong, 1 - scores, scores)
        normal = rng.randn(self.parts)
        if self.noise:
            scores = scores + self.noise * normal
        if self.tail:  # Student's t with 2 degrees of freedom: normal / sqrt(chi2_2 / 2), chi2_2 = -2 log U
            uniform = rng.rand(self.parts).clamp(min=1e-6, max=1 - 1e-6)
            scores = scores + self.tail * normal / (-uniform.log()).sqrt()
        return scores

    def demonstrate(self, policy: SoftmaxTable, requests: list[Request]) -> Trajectories:
        """Return demonstrations: each symbol is right with probability `quality`, with fixed mistakes per problem."""
        problem = torch.tensor([r.start for r in requests])
        step = torch.arange(self.length).expand(len(problem), -1)
        g = torch.Generator().manual_seed(1)
        slips = torch.rand(self.codes.shape, generator=g) >= self.quality
        symbol = (self.codes[problem] + slips[problem].long()) % self.code_symbols
        good = self.right(problem[:, None].expand_as(step), step, symbol)
        alive = torch.cat([torch.ones_like(good[:, :1]), good[:, :-1]], 1).cumprod(1)
        obs = self.observe(problem[:, None].expand_as(step), step, alive)
        n = len(problem)
        return Trajectories(
            logp_old=torch.zeros(n, self.length),
            mask=step < self.lengths[problem][:, None],
            score=torch.full((n,), torch.nan),
            scores=torch.full((n, len(self.channels)), torch.nan),
            group=torch.arange(n),
            segment=step.clone(),
            expert_mask=torch.ones(n, dtype=torch.bool),
            truncated=torch.zeros(n, dtype=torch.bool),
            trace={"obs": obs, "action": symbol},
        )

    @torch.no_grad()
    def evaluate(self, policy: SoftmaxTable, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Compute exactly, for the sampling policy without hints: success, its share above one half (`solved`), of the worst fifth
        (`worst`), pass@8 (`passk`), the success of every channel's stretch (`weakest`), and the entropy per decision (nats)."""
        problem, position = torch.meshgrid(torch.arange(self.starts), torch.arange(self.length), indexing="ij")
        probs = policy.logits.softmax(1)[self.observe(problem, position, torch.ones_like(problem))]
        good = sum(
            probs.gather(2, (self.codes[..., None] + k) % self.code_symbols)[..., 0] for k in range(self.slack + 1)
        )
        assert isinstance(good, Tensor)
        idle = probs[..., self.code_symbols :].sum(2)
        counted = position < self.lengths[:, None]
        if self.share:
            success = torch.where(counted, good, 0.0).sum(1) / self.lengths
        elif self.critical is not None:
            success = good[:, self.critical]
        else:
            success = self.reach(good, idle)
        stretches = [counted & (position * self.parts // self.length == k) for k in range(self.parts)]
        weakest = min(float(torch.where(s, good, 1.0).prod(1).mean()) for s in stretches)
        entropy = -(probs * probs.clamp(min=1e-30).log()).sum(2)[counted].mean()
        worst = success.sort().values[: max(1, self.starts // 5)].mean()
        return {
            "success": float(success.mean()),
            "solved": float((success > 0.5).float().mean()),
            "worst": float(worst),
            "passk": float((1 - (1 - success.clamp(0, 1)) ** 8).mean()),
            "weakest": weakest,
            "entropy": float(entropy),
        }

    def reach(self, good: Tensor, idle: Tensor) -> Float[Tensor, " problem"]:
        """Compute the probability of typing the whole code within the horizon, by dynamic programming over positions."""
        at = torch.zeros(self.starts, self.length + 1)
        at[:, 0] = 1
        last = torch.arange(self.length + 1) >= self.lengths[:, None]
        pad = torch.zeros(self.starts, 1)
        on, stay = torch.cat([good, pad], 1), torch.cat([idle, pad], 1)
        for _ in range(self.horizon):
            move = torch.where(last, 0.0, at * on)
            at = torch.where(last, at, at * stay)
            at[:, 1:] += move[:, :-1]
        return at.gather(1, self.lengths[:, None])[:, 0]


class Sequences(Toy):
    """One start, `length` symbols out of `symbols`, a fixed random reward for every one of the symbols^length outcomes; the policy
    observes all symbols so far. The expected reward and its gradient are exact.

    proxies: the true reward is never shown, but by so many channels that are each wrong by `error` times a fixed standard normal
    per outcome; the score is the first of them."""

    name = "sequences"
    starts = 1
    sync = 1
    noise_logp = 0.0

    def __init__(
        self,
        *,
        length: int = 3,
        symbols: int = 3,
        noise: float = 0.0,
        spread: float = 1.0,
        binary: bool = False,
        proxies: int = 0,
        error: float = 0.5,
        seed: int = 0,
    ):
        self.length = self.horizon = length
        self.symbols, self.noise, self.spread = symbols, noise, spread
        self.offsets = torch.tensor([(symbols**k - 1) // (symbols - 1) for k in range(length)])
        self.states = (symbols**length - 1) // (symbols - 1)
        g = torch.Generator().manual_seed(seed)
        self.rewards = torch.rand(symbols**length, generator=g, dtype=torch.float64)
        self.rewards = (self.rewards > 0.5).double() if binary else self.rewards
        wrong = error * torch.randn(len(self.rewards), proxies, generator=g, dtype=torch.float64)
        self.shown = self.rewards[:, None] + wrong if proxies else self.rewards[:, None]
        self.channels = tuple(f"proxy{k}" for k in range(proxies)) if proxies else ("score",)
        self.outcomes = torch.tensor(list(itertools.product(range(symbols), repeat=length)))

    def policy(self, heads: tuple[str, ...], seed: int) -> SoftmaxTable:
        policy = super().policy(heads, seed)
        with torch.no_grad():
            g = torch.Generator().manual_seed(seed)
            policy.logits.copy_(self.spread * torch.randn(policy.logits.shape, generator=g))
        return policy

    def observations(self, symbols: Int[Tensor, "row step"]) -> Int[Tensor, "row step"]:
        """Return the index of the symbols before each one."""
        prefix = torch.zeros_like(symbols)
        for t in range(1, self.length):
            prefix[:, t] = prefix[:, t - 1] * self.symbols + symbols[:, t - 1]
        return prefix + self.offsets

    def index(self, symbols: Int[Tensor, "row step"]) -> Int[Tensor, " row"]:
        return (symbols * self.symbols ** torch.arange(self.length - 1, -1, -1)).sum(1)

    def play(self, policy: SoftmaxTable, requests: list[Request], rng: RowRng) -> tuple[Trajectories, dict[str, float]]:
        group = torch.arange(len(requests)).repeat_interleave(torch.tensor([r.samples for r in requests]))
        b = self.batch(policy, group, rng)
        return b, {"reward": float(b.need("score").mean()), "env_steps": float(b.valid.sum())}

    def batch(self, policy: SoftmaxTable, group: Int[Tensor, " row"], rng: Rng) -> Trajectories:
        """Sample one row per entry of `group` from the exact distribution over outcomes."""
        logps = self.log_probs(policy.logits.detach())
        chances = logps.sum(1).exp().cumsum(0)
        which = torch.searchsorted(chances, chances[-1] * rng.rand(), right=True)
        symbols = self.outcomes[which]
        noise = self.noise * rng.randn().double()
        scores = (self.shown[which] + noise[:, None]).to(policy.logits.dtype)
        obs = self.observations(symbols)
        return Trajectories(
            logp_old=logps[which].to(policy.logits.dtype),
            value=None if policy.table is None else policy.table.detach()[obs][..., 0],
            mask=torch.ones(symbols.shape, dtype=torch.bool),
            score=scores[:, 0],
            scores=scores,
            group=group,
            segment=torch.arange(self.length).expand(symbols.shape).clone(),
            trace={"obs": obs, "action": symbols},
        )

    def log_probs(self, logits: Float[Tensor, "state symbol"]) -> Float[Tensor, "outcome step"]:
        """Return log pi of every decision of every outcome."""
        return logits.double().log_softmax(1)[self.observations(self.outcomes), self.outcomes]

    def exact_gradient(self, policy: SoftmaxTable) -> Float[Tensor, "state symbol"]:
        """Return d/dlogits of sum over outcomes of probability times reward."""
        logits = policy.logits.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad((self.log_probs(logits).sum(1).exp() * self.rewards).sum(), logits)
        return gradient

    @torch.no_grad()
    def evaluate(self, policy: SoftmaxTable, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Compute the exact expected reward, scaled to 0 for the worst and 1 for the best outcome."""
        mean = (self.log_probs(policy.logits).sum(1).exp() * self.rewards).sum()
        low, high = self.rewards.min(), self.rewards.max()
        return {"success": float((mean - low) / (high - low))}
