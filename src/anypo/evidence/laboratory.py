"""Experiments that claims are made of. Each measures one method under one seed; equal seeds give every method equal tasks,
initial policies and random numbers. None of them knows any method."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from functools import cache
from typing import Any

import torch

from anypo import policies
from anypo.config import Config
from anypo.errors import UsageError, unknown
from anypo.evidence.reach import Reach
from anypo.evidence.toys import Codes, Sequences
from anypo.loops.learn import learn, with_late_views, with_views
from anypo.loops.run import Run, learned, stocked
from anypo.loops.update import gradient
from anypo.method import Method
from anypo.policies.anchor import snapshot
from anypo.stages import Want
from anypo.tasks.pool import StartPool
from anypo.types import Comparisons

Measures = dict[str, float]


def assemble(
    method: Method,
    task: Any,
    seed: int,
    *,
    batches: int,
    lr: float,
    requests: int,
    samples: int,
    epochs: int,
    minibatch: int,
    policy: Any = None,
) -> Run:
    """A run in memory. What the method itself defines (its own epochs, a rate) stands; the rest is the experiment's."""
    recipe = {"lr": lr, "requests": requests, "samples": samples, "epochs": epochs, "minibatch": minibatch}
    for slot in ("step", "collect"):
        part = method.stages[slot]
        open_ = [f.name for f in fields(part) if getattr(part, f.name) is None and f.name in recipe]
        method = method.configure({slot: {name: recipe[name] for name in open_}})
    policy = task.policy(method.heads, seed) if policy is None else policy
    collect = method.stages["collect"]
    run = Run(
        config=Config(method=method.card.id, policy={"name": "table"}, seed=seed, evaluate_every=max(1, batches // 10)),
        method=method,
        task=task,
        policy=policy,
        pool=StartPool(task.starts, seed),
        store=stocked(method, task, policy),
        stepper=method.stages["step"].bind(learned(policy)),
        want=Want(collect.requests, collect.samples, task.recipe(method.traits)["horizon"]),
        generator=torch.Generator().manual_seed(seed),
        folder=None,
        steps=batches,
    )
    run.anchors = {name: snapshot(policy) for name in run.rules}
    return run


def trained(
    method: Method,
    seed: int,
    *,
    batches: int = 100,
    lr: float = 0.1,
    requests: int = 16,
    samples: int = 8,
    epochs: int = 1,
    minibatch: int = 0,
    **task: Any,
) -> Measures:
    """Train on hidden codes (settings of `toys.Codes`) and report how it went:

    success, solved, worst, passk, weakest, entropy at the end (exact, see `Codes.evaluate`); curve: mean success over the
    run; ratio_far: largest |log of the mean ratio's maximum|; spike: largest gradient norm over the median one; length_right,
    length_wrong: over the last tenth; hint: mean hint over the last tenth; live_rows: share of rows
    with an advantage; dead_groups: share of groups without a difference in outcome.
    """
    run = assemble(
        method, Codes(seed=seed, **task), seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=epochs,
        minibatch=minibatch,
    )  # fmt: skip
    records: list[dict[str, Any]] = []
    learn(run, records.append)
    held = [r for r in records if "eval/success" in r]
    last = {name.removeprefix("eval/"): value for name, value in held[-1].items() if name.startswith("eval/")}
    late = records[-max(1, batches // 10) :]

    def mean(name: str, some: list[dict[str, Any]]) -> float:
        found = [r[name] for r in some if name in r]
        return sum(found) / len(found) if found else 0.0

    norms = [r["grad_norm"] for r in records if r.get("grad_norm", 0) > 0]
    reached = [r["batch"] for r in held if r["eval/success"] >= 0.8]
    return {
        **last,
        "curve": mean("eval/success", held),
        "batches_to_80": float(reached[0] if reached else batches + 1),
        "ratio_max": max((r.get("ratio_max", 1.0) for r in records[1:]), default=1.0),
        "kl_old": mean("kl_old", records),
        "spike": max(norms) / statistics.median(norms) if norms else 1.0,
        "length_right": mean("length_right", late),
        "length_wrong": mean("length_wrong", late),
        "hint": mean("hint", late),
        "dead_groups": mean("dead_groups", records),
        "live_rows": mean("live_rows", records),
        "decisions": mean("decisions", records),
    }


def gradient_quality(
    method: Method,
    seed: int,
    *,
    repeats: int = 100,
    requests: int = 4,
    samples: int = 8,
    drift: float = 0.0,
    **task: Any,
) -> Measures:
    """The objective's gradient on `repeats` batches of enumerable sequences against the exact gradient of the expected reward:

    cosine: mean over batches; bias: sine of the angle between the mean estimate and the truth, with sampling noise in it;
    variance: tr Cov / |mean|^2; gain: projection of the mean estimate on the truth, over its length. drift: the policy has moved
    by this much (standard deviation per logit) since the rows were sampled.
    """
    toy = Sequences(seed=seed, **task)
    run = assemble(method, toy, seed, batches=1, lr=0.1, requests=requests, samples=samples, epochs=1, minibatch=0)
    group = torch.arange(requests).repeat_interleave(samples)
    old = run.policy.logits.detach().clone()
    new = old + drift * torch.randn(old.shape, generator=torch.Generator().manual_seed(seed + 1))
    estimates = []
    for _ in range(repeats):
        with torch.no_grad():
            run.policy.logits.copy_(old)
        rows = method.prepare(with_views(run, method, toy.batch(run.policy, group, run.generator)))
        with torch.no_grad():
            run.policy.logits.copy_(new)
        run.policy.logits.grad = None
        gradient(method, run.policy, with_late_views(run, method, rows), run.config.micro)
        found = run.policy.logits.grad
        estimates.append(torch.zeros_like(old).double() if found is None else -found.double())
    with torch.no_grad():
        run.policy.logits.copy_(new)
    truth = toy.exact_gradient(run.policy).flatten()
    each = torch.stack(estimates).flatten(1)
    middle = each.mean(0)
    angle = torch.nn.functional.cosine_similarity(middle, truth, dim=0, eps=1e-12)
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(each, truth[None], dim=1, eps=1e-12).mean()),
        "bias": float((1 - angle.square()).clamp(min=0).sqrt()),
        "variance": float((each - middle).square().sum(1).mean() / middle.square().sum().clamp(min=1e-24)),
        "gain": float(middle @ truth / truth.square().sum()),
    }


def direction(
    method: Method,
    seed: int,
    *,
    batches: int = 150,
    lr: float = 0.05,
    samples: int = 4,
    noise: float = 0.3,
    **task: Any,
) -> Measures:
    """How well the direction a step follows agrees with the exact gradient where the policy stands, over a run on sequences:
    cosine and squared error of unit vectors, means over the run; success at the end."""
    toy = Sequences(seed=seed, noise=noise, **task)
    run = assemble(method, toy, seed, batches=batches, lr=lr, requests=1, samples=samples, epochs=1, minibatch=0)
    cosines: list[float] = []

    def watch(record: dict[str, Any]) -> None:
        followed = getattr(run.stepper, "direction", None)
        if record["batch"] == 0:
            return
        if followed:
            ascent = followed[0]
        else:
            assert run.policy.logits.grad is not None
            ascent = -run.policy.logits.grad
        truth = toy.exact_gradient(run.policy).flatten()
        cosines.append(float(torch.nn.functional.cosine_similarity(ascent.double().flatten(), truth, dim=0, eps=1e-12)))

    last = learn(run, watch)
    mean = sum(cosines) / len(cosines)
    return {"cosine": mean, "error": 2 - 2 * mean, "success": last["eval/success"]}


def proxied(
    method: Method,
    seed: int,
    *,
    batches: int = 150,
    lr: float = 0.1,
    requests: int = 1,
    samples: int = 64,
    minibatch: int = 0,
    proxies: int = 5,
    **task: Any,
) -> Measures:
    """Train where only proxies of the true reward are seen (`toys.Sequences`): true reward at the end (`success`, 0 to 1 between the
    worst and the best outcome), its best over the run (`peak`), what was lost since (`fall`)."""
    toy = Sequences(seed=seed, proxies=proxies, **task)
    run = assemble(
        method, toy, seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=1, minibatch=minibatch
    )
    records: list[dict[str, Any]] = []
    last = learn(run, records.append)["eval/success"]
    peak = max(r["eval/success"] for r in records if "eval/success" in r)
    return {"success": last, "peak": peak, "fall": peak - last}


def recovered(
    method: Method, seed: int, *, items: int = 10, comparisons: int = 5000, updates: int = 1500, lr: float = 0.05
) -> Measures:
    """Fit one number per item to comparisons drawn from Bradley-Terry probabilities of known scores. The number is the item's learned
    score and, after a softmax, its log-probability, so reward models and policies fit the same numbers. rmse: to the known
    scores, both centred, at the best scale, over their standard deviation."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(items, generator=g, dtype=torch.float64)
    i, j = torch.randint(items, (2, comparisons), generator=g)
    first = torch.rand(comparisons, generator=g, dtype=torch.float64) < torch.sigmoid(truth[i] - truth[j])
    w, l = torch.where(first, i, j)[i != j], torch.where(first, j, i)[i != j]  # noqa: E741
    kinds, count = torch.unique(w * items + l, return_counts=True)
    w, l = kinds // items, kinds % items  # noqa: E741
    fitted = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([fitted], lr)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
        logp, ref = fitted.log_softmax(0), torch.zeros(len(w), dtype=torch.float64)
        pairs = Comparisons(
            logp[w], logp[l], ref, ref, score_chosen=fitted[w], score_rejected=fitted[l], weight=count / count.double().mean()
        )  # fmt: skip
        loss, _ = method.loss(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = (v.detach() - v.detach().mean() for v in (fitted, truth))
    scale = (x @ y) / (x @ x).clamp(min=1e-24)
    return {"rmse": float((scale * x - y).square().mean().sqrt() / y.square().mean().sqrt()), "scale": float(scale)}


def layers(
    method: Method, seed: int, *, batches: int = 90, lr: float = 1e-3, requests: int = 12, samples: int = 8
) -> Measures:
    """A new decoder of three blocks is to answer every letter with the one a hidden permutation names: greedy success."""
    from anypo.policies.language import LanguageModel
    from anypo.policies.tiny import fresh
    from anypo.tasks.text import TextTask

    letters = "abcdefghijkl"
    order = torch.randperm(len(letters), generator=torch.Generator().manual_seed(seed)).tolist()
    records = [{"prompt": a, "answer": letters[i]} for a, i in zip(letters, order, strict=True)]
    tokenizer, model = fresh(letters, seed)
    task = TextTask("letters", records, records, ["exact"], metric="success", max_new=1)
    run = assemble(
        method, task, seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=1, minibatch=0,
        policy=LanguageModel(model, tokenizer, value=method.heads, max_new=1),
    )  # fmt: skip
    records_: list[dict[str, Any]] = []
    last = learn(run, records_.append)
    held = [r["eval/success"] for r in records_ if "eval/success" in r]
    return {"success": last["eval/success"], "curve": sum(held) / len(held)}


def control(method: Method, seed: int, *, env: str = "CartPole-v1", steps: int = 20_000, **step: Any) -> Measures:
    """A short run on a Gymnasium task with the task's own settings: final mean return, mean over the run, and ratio_max."""
    from anypo.loops.run import build

    settings = {"task": {"name": f"gym:{env}"}, "steps": steps, "seed": seed, "evaluate_every": 4, "episodes": 10}
    config = Config(method=method.card.id, **settings)
    config.stages = {"step": step} if step else {}
    run = build(config)
    records: list[dict[str, Any]] = []
    last = learn(run, records.append)
    held = [r["eval/return"] for r in records if "eval/return" in r]
    ratio_max = sum(r["ratio_max"] for r in records if "ratio_max" in r) / max(
        1, sum("ratio_max" in r for r in records)
    )
    return {"return": last["eval/return"], "curve": sum(held) / len(held), "ratio_max": ratio_max}


def replayed(
    method: Method, seed: int, *, batches: int = 60, first: int = 192, ratio: float = 1.0, late: int = 0, **task: Any
) -> Measures:
    """Value learning on `reach.Reach` (its settings): 2 episodes a batch, networks of 64-64, minibatches of 64.

    return: greedy, at the end; curve: mean over the run; overestimation (where there is a Q-network); modes (two peaks). With data, and a
    method that collects nothing, every batch is 24 updates on the data. Methods that do not replay train as they do elsewhere.
    late: batches learned from the data before anything is collected.
    """
    toy = Reach(seed=seed, **task)
    if method.traits["replays"]:
        own = method.stages["store"].ratio
        method = method.configure({"store": {"batch": 64, "start": first, "idle": 24, "ratio": own * ratio}})
        if hasattr(method.stages["collect"], "first"):
            method = method.configure({"collect": {"first": first, "after": late}})
        spec = {"name": method.policy, "hidden": [64, 64]}
    else:
        spec = {"name": "mlp"}
    policy = policies.make(spec, toy, value=method.heads, networks=method.networks, seed=seed)
    run = assemble(
        method, toy, seed, batches=batches, lr=1e-3, requests=2, samples=1, epochs=4, minibatch=0, policy=policy
    )
    records: list[dict[str, Any]] = []
    learn(run, records.append)
    held = [r for r in records if "eval/return" in r]
    last = {name.removeprefix("eval/"): value for name, value in held[-1].items() if name.startswith("eval/")}
    return {**last, "curve": sum(r["eval/return"] for r in held) / len(held)}


def plane(
    method: Method,
    seed: int,
    *,
    policy: str | None = None,
    pretraining: int = 1000,
    batches: int = 100,
    lr: float = 1e-3,
    requests: int = 8,
    samples: int = 16,
    epochs: int = 1,
    steps: int = 10,
    noise: str | None = None,
    **task: Any,
) -> Measures:
    """Train a policy that has cloned the expert of `tasks.multimodal` (settings of that task) for `pretraining` steps, and measure
    its samples at the end as the task does: reward, gold, precision, coverage, modes. curve: mean reward over the run;
    batches_to_90: until nine tenths of the reward are reached. policy: flow, diffusion or mlp; left open, the first that
    offers what the method reads. steps, noise: of a generative policy.
    """
    from anypo.tasks.multimodal import Multimodal

    needed = {view.functional for view in (method.live | method.views).values()} - {*method.heads}
    options = {"steps": steps} | ({} if noise is None else {"noise": noise})
    made = (
        cloned(
            kind, pretraining, method.heads, seed, tuple(() if kind == "mlp" else options.items()), tuple(task.items())
        )
        for kind in (("flow", "diffusion", "mlp") if policy is None else (policy,))
    )
    able = next((p for p in made if needed <= p.functionals), None)
    if able is None:
        raise UsageError(f"no policy of the plane gives all that {method.card.id} reads: {', '.join(sorted(needed))}")
    run = assemble(
        method, Multimodal(**task), seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=epochs,
        minibatch=0, policy=deepcopy(able),
    )  # fmt: skip
    run.config.evaluate_every = max(1, batches // 20)
    records: list[dict[str, Any]] = []
    last = learn(run, records.append)
    held = [r for r in records if "eval/reward" in r]
    reached = [r["batch"] for r in held if r["eval/reward"] >= 0.9]
    return {
        **{name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")},
        "curve": sum(r["eval/reward"] for r in held) / len(held),
        "batches_to_90": float(reached[0] if reached else batches + 1),
    }


@cache
def cloned(
    kind: str, pretraining: int, heads: tuple[str, ...], seed: int, options: tuple[Any, ...], task: tuple[Any, ...]
) -> Any:
    """A policy after behaviour cloning; equal for every method under one seed."""
    from anypo import policies
    from anypo.tasks.multimodal import Multimodal

    spec = {"name": kind, "pretrain": pretraining, **dict(options)}
    return policies.make(spec, Multimodal(**dict(task)), value=heads, seed=seed)


Experiment = Callable[..., Measures]


def on_codes(text: str, **defaults: Any) -> tuple[Experiment, dict[str, Any], str]:
    return trained, defaults, text


EXPERIMENTS: dict[str, tuple[Experiment, dict[str, Any], str]] = {
    "gradient": (
        gradient_quality,
        {},
        "bias and variance of the gradient against the exact one, on enumerable sequences",
    ),
    "stale-gradient": (gradient_quality, {"drift": 0.5}, "the same after the policy has moved since it sampled"),
    "bandit": (gradient_quality, {"length": 1, "symbols": 10, "repeats": 200}, "the same on a bandit with ten arms"),
    "direction": (direction, {}, "agreement of the followed direction with the exact gradient along a run"),
    "learning": on_codes("plain on-policy learning of hidden codes"),
    "staleness": on_codes("the sampling policy is renewed every eighth batch only", sync=8),
    "mismatch": on_codes("sampler and learner disagree about log-probabilities (0.3 nats)", noise_logp=0.3),
    "retention": on_codes("two right symbols per position: what variety is left", slack=1, symbols=6, batches=150),
    "sparse": on_codes("codes too long to be found by chance", length=8, batches=150),
    "multi-reward": on_codes("two outcome channels, one worth ten times the other", parts=2, scale=10.0),
    "noise": on_codes("Gaussian noise on every score", noise=0.5),
    "heavy-tail": on_codes("heavy-tailed noise on every score", tail=0.3),
    "flips": on_codes("one verdict in five is wrong", flips=0.2),
    "length": on_codes("fillers are free: how long answers get", filler=True, length=3, batches=150),
    "mixture": on_codes(
        "easy and hard codes under one sampling budget", graded=True, length=6, problems=24, batches=120
    ),
    "horizon": on_codes("one decision of twelve decides the outcome", length=12, critical=5, alive=False),
    "demonstrations": on_codes(
        "hard codes with demonstrations, a tenth of whose symbols are wrong", length=8, quality=0.9
    ),
    "reuse": on_codes("every batch is used eight times", epochs=8),
    "large-steps": on_codes("steps ten times too large", lr=1.0),
    "proxies": (proxied, {}, "five reward models that are each wrong in their own way; the true reward is measured"),
    "recovery": (recovered, {}, "known scores of ten items, from comparisons that follow Bradley-Terry"),
    "layers": (layers, {}, "a small language model learns a permutation of letters"),
    "denoising": (plane, {"paying": (0, 1)}, "a pretrained generative policy is paid at two of its four points"),
    "modes": (
        plane,
        {"batches": 150},
        "a pretrained generative policy is paid at all four points: which of them it keeps",
    ),
    "cloning": (
        plane,
        {"pretraining": 0, "batches": 1000, "lr": 2e-3, "requests": 128, "samples": 1},
        "behaviour cloning of an expert who uses four points of the plane",
    ),
    "control": (control, {}, "CartPole for 20,000 steps"),
    "replay": (replayed, {}, "a point reaches for a goal, 1,440 decisions"),
    "offline": (replayed, {"data": "mixed"}, "the same from recorded episodes, four in five of them random"),
    "two-peaks": (
        replayed,
        {"peaks": True, "batches": 600, "first": 64, "reward_scale": 20.0},
        "one decision with two equally good answers",
    ),
}
"""Name -> (function, settings it is run with unless a claim says otherwise, what it is about)."""

CHEAP = ("gradient", "stale-gradient", "bandit", "direction")
"""Experiments that take under five seconds for ten seeds of two methods."""


def run_experiment(name: str, method: Method, seed: int, settings: dict[str, Any]) -> Measures:
    """One method, one seed; UsageError for an unknown experiment or setting."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    function, defaults, _ = EXPERIMENTS[name]
    try:
        return function(method, seed, **{**defaults, **settings})
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UsageError(f"the experiment {name!r} has no such setting: {error}") from None
        raise
