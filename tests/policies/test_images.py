"""Observations with images: which boxes are images, what the convolutions compute, and policies that learn from pixels."""

from __future__ import annotations

import json
import shutil
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import anypo
from anypo.config import from_dict
from anypo.loops.learn import learn
from anypo.policies.control.images import NatureCNN, image_of
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.control.off_policy import Deterministic, GaussianActor, Greedy, SquashedGaussian
from anypo.policies.generative.flow import FlowPolicy
from anypo.report.plan import plan_lines
from anypo.rng import BatchRng
from anypo.runs.build import build
from anypo.types import Trajectories
from anypo.views import Network


def pixels(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


class Side(gymnasium.Env):
    """A square is drawn in the left or the right half; the right action names it. `late` shows a number beside the image."""

    action_space = spaces.Discrete(2)

    def __init__(self, shape=(36, 36, 1), number=False):
        self.shape, self.number = shape, number
        image = pixels(*shape)
        self.observation_space = spaces.Dict({"image": image, "speed": spaces.Box(-9, 9, (2,))}) if number else image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.draw(), {}

    def draw(self):
        image = np.zeros(self.shape, np.uint8)
        plane = image[..., 0] if self.shape[-1] < 8 else image.reshape(-1, *self.shape[-2:])[0]
        self.side = int(self.np_random.integers(2))
        row, column = self.np_random.integers(0, 24), self.np_random.integers(0, 8) + 18 * self.side
        plane[row : row + 10, column : column + 10] = 200
        return {"image": image, "speed": np.array([3.0, -3.0], np.float32)} if self.number else image

    def step(self, action):
        reward = float(action == self.side)
        self.t += 1
        return self.draw(), reward, False, self.t == 8, {}


gymnasium.register("Side-v0", entry_point=Side)
gymnasium.register("SideAndSpeed-v0", entry_point=Side, kwargs={"number": True})


@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((84, 84, 3), (3, 84, 84)),
        ((3, 84, 90), (3, 84, 90)),
        ((36, 40), (1, 36, 40)),
        ((4, 84, 84, 3), (12, 84, 84)),
        ((4, 84, 84, 1), (4, 84, 84)),
        ((2, 3, 84, 84), (6, 84, 84)),
        ((35, 84, 3), None),
        ((4, 128), None),
        ((128,), None),
    ],
)
def test_boxes_of_bytes_with_two_large_sides_are_images(shape, planes):
    image = image_of(pixels(*shape))
    assert (image and image.planes) == planes
    assert image_of(spaces.Box(0, 255, shape, np.float32)) is None


def test_planes_are_read_as_the_space_lays_them_out():
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 40, 50, 3), np.uint8)
    planes = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).reshape(5, 12, 40, 50) / 255
    last, first = pixels(4, 40, 50, 3), pixels(4, 3, 40, 50)
    assert torch.equal(image_of(last).read(torch.from_numpy(frames).flatten(1).float()), planes)
    rows = torch.from_numpy(frames.transpose(0, 1, 4, 2, 3).reshape(5, -1)).float()
    assert torch.equal(image_of(first).read(rows), planes)


def test_the_network_is_that_of_mnih_et_al():
    generator = torch.Generator().manual_seed(0)
    net = NatureCNN(image_of(pixels(4, 84, 84)), generator)
    sizes = [(p.shape[0], p[0].numel()) for p in net.parameters() if p.ndim > 1]
    assert sizes == [(32, 4 * 64), (64, 32 * 16), (64, 64 * 9), (512, 64 * 49)]
    for weight in (p.flatten(1) for p in net.parameters() if p.ndim > 1):
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), atol=1e-4, rtol=0)
    x = torch.randint(0, 256, (3, 4 * 84 * 84), generator=generator).float()
    out = x.view(3, 4, 84, 84) / 255
    weights = list(net.parameters())
    for k, stride in enumerate((4, 2, 1)):
        out = torch.nn.functional.conv2d(out, weights[2 * k], weights[2 * k + 1], stride).relu()
    torch.testing.assert_close(net(x), (out.flatten(1) @ weights[6].T + weights[7]).relu())


ROOMS = spaces.Dict(
    {"b": pixels(3, 36, 40), "gear": spaces.Discrete(3), "a": pixels(40, 36), "speed": spaces.Box(-9, 9, (2,))}
)


def observed(space, count):
    space.seed(0)
    return [space.sample() for _ in range(count)]


def test_images_among_other_observations_have_convolutions_and_the_rest_is_normalized():
    policy = MLPPolicy(ROOMS, spaces.Discrete(3))
    rows = observed(ROOMS, 300)
    obs = torch.from_numpy(policy.encode_batch(rows))
    assert obs.element_size() * obs.shape[1] == 3 * 36 * 40 + 40 * 36 + 1 + 8
    policy.observe(Trajectories(mask=torch.ones(300, 1), trace={"obs": obs[:, None]}))
    speeds = torch.from_numpy(np.stack([row["speed"] for row in rows]))
    torch.testing.assert_close(policy.norm.mean[-2:].float(), speeds.mean(0))
    features = policy.features(obs)
    assert features.shape == (300, 512 + 512 + 3 + 2)
    torch.testing.assert_close(features[:, -2:].mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    assert [features[i, -5:-2].argmax().item() for i in range(9)] == [row["gear"] for row in rows[:9]]
    for name, net, part in zip("ab", policy.convolutions.nets, (slice(0, 512), slice(512, 1024)), strict=True):
        image = torch.from_numpy(np.stack([row[name] for row in rows[:9]])).flatten(1).float()
        torch.testing.assert_close(features[:9, part], net(image), atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # several chunks
        torch.testing.assert_close(policy.features(obs), features, atol=1e-5, rtol=1e-5)


def test_one_gradient_of_actor_and_critic_reaches_the_shared_convolutions():
    policy = MLPPolicy(pixels(36, 36, 3), spaces.Discrete(3), seed=1)
    obs = torch.from_numpy(policy.encode_batch(observed(pixels(36, 36, 3), 12))).view(3, 4, -1)
    decided = policy.act(obs.flatten(0, 1), BatchRng(torch.Generator().manual_seed(0), 12))
    b = Trajectories(mask=torch.ones(3, 4), trace={"obs": obs, "action": decided.action.view(3, 4)})
    out = policy.evaluate(b, {"logp", "value"})
    torch.testing.assert_close(out["logp"].flatten(), decided.logp, atol=1e-6, rtol=0)
    torch.testing.assert_close(out["value"].flatten(), decided.value, atol=1e-6, rtol=0)
    for name in ("logp", "value"):
        grads = torch.autograd.grad(out[name].sum(), list(policy.convolutions.parameters()), retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("cls", [SquashedGaussian, Deterministic, GaussianActor])
def test_every_network_of_a_policy_with_value_networks_has_convolutions_of_its_own(cls):
    networks = {"q": Network("action", 2), "v": Network("state", 1)}
    policy = cls(ROOMS, spaces.Box(-1, 1, (2,)), networks=networks, normalize=True, hidden=(16,))
    obs = torch.from_numpy(policy.encode_batch(observed(ROOMS, 6)))
    policy.standardize(obs)
    features = policy.features(obs)
    torch.testing.assert_close(features[:, -2:].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    action = torch.rand(6, 1, 2, requires_grad=True)
    b = Trajectories(mask=torch.ones(6, 1), trace={"obs": obs[:, None], "action": action})
    q = policy.evaluate(b, {"q"})["q"]
    assert q.shape == (6, 1, 2)
    own = [list(policy.critics[name].convolutions.parameters()) for name in ("q", "v")] + [
        list(policy.actor.convolutions.parameters())
    ]
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(q.sum(), own[0]))
    assert torch.autograd.grad(policy.evaluate(b, {"q"})["q"].sum(), own[1], allow_unused=True)[0] is None
    frozen = policy.evaluate(b, {"q"}, frozen=True)["q"]
    of_action, *rest = torch.autograd.grad(frozen.sum(), [action, *own[0]], allow_unused=True)
    assert of_action.abs().sum() > 0
    assert all(grad is None for grad in rest)


@pytest.mark.parametrize("cls", [MLPPolicy, Greedy])
def test_choices_follow_the_features_of_an_image_at_once_unless_hidden_layers_are_asked_for(cls):
    networks = {"networks": {"q": Network("action")}} if cls is Greedy else {}
    image, actions = pixels(36, 36, 1), spaces.Discrete(2)
    sizes = [
        sum(p.numel() for p in cls(image, actions, **networks, **more).parameters()) for more in ({}, {"hidden": [8]})
    ]
    convolutions = sum(p.numel() for p in NatureCNN(image_of(image), torch.Generator()).parameters())
    heads = 1 if cls is Greedy else 2
    assert sizes[0] == convolutions + 2 * 513 + (heads - 1) * 513
    assert sizes[1] == convolutions + heads * 513 * 8 + 2 * 9 + (heads - 1) * 9


def test_generative_policies_read_images_too():
    policy = FlowPolicy(ROOMS, spaces.Box(-1, 1, (2,)))
    obs = torch.from_numpy(policy.encode_batch(observed(ROOMS, 4)))
    assert policy.act(obs, BatchRng(torch.Generator().manual_seed(0), 4)).action.shape == (4, 2)


def notes_of(run):
    return [text for label, text in plan_lines(run) if label == "note"]


def test_the_plan_says_how_images_are_read_and_which_are_too_small():
    def run_of(method, shape):
        task = {"name": "gym:Side-v0", "env_kwargs": {"shape": shape}, "envs": 1}
        return build(from_dict({"method": method, "task": task, "steps": 10}))

    for method in ("ppo", "dqn"):
        note = "observations: convolutions read images of 40x36 pixels with 2 channels"
        assert note in notes_of(run_of(method, (2, 40, 36)))
        assert any("20x20x1 pixels are 400 single features" in text for text in notes_of(run_of(method, (20, 20, 1))))


def test_ppo_learns_from_pixels_predicts_and_is_exported(tmp_path):
    settings = {"step": {"epochs": 3, "minibatch": 64, "lr": 1e-3}, "seed": 1, "episodes": 10}
    run = anypo.train(
        "ppo", task={"name": "gym:SideAndSpeed-v0", "envs": 4}, steps=3072, **settings, out=tmp_path / "r"
    )
    assert run.result["before"] < 6 < 7.5 < run.result["after"]
    observations = [Side(number=True).reset(seed=seed)[0] for seed in range(12)]
    actions = run.predict(observations)
    sides = [int(o["image"][:, 18:].any()) for o in observations]
    assert sum(a == side for a, side in zip(actions, sides, strict=True)) >= 10
    program = torch.export.load(run.export()).module()
    for rows in (observations, observations[:1] * 300):
        batch = {name: torch.from_numpy(np.stack([o[name] for o in rows])) for name in ("image", "speed")}
        assert program(batch).tolist() == run.predict(rows).tolist()


def test_a_run_on_pixels_goes_on_to_the_same_numbers(tmp_path):
    folder = tmp_path / "r"
    settings = {
        "collect": {"requests": 2},
        "step": {"epochs": 2, "minibatch": 64},
        "checkpoint_every": 1,
        "episodes": 1,
    }
    anypo.train("ppo", task={"name": "gym:Side-v0", "envs": 2}, steps=1024, **settings, out=folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = sorted((folder / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    (folder / "result.json").unlink()
    anypo.resume(folder)
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = [name for name in lines[0] if "second" in name or "time" in name]
    assert len(again) > 1
    for one, two in zip(lines, again, strict=True):
        assert {n: x for n, x in one.items() if n not in timed} == {n: x for n, x in two.items() if n not in timed}


def test_dqn_learns_from_pixels_that_are_stored_as_bytes_by_traced_updates():
    values = {
        "method": "dqn", "task": {"name": "gym:Side-v0", "envs": 1, "eval_episodes": 5}, "steps": 500, "step": {"lr": 1e-3},
        "store": {"batch": 32, "start": 150, "ratio": 0.5}, "collect": {"first": 150},
    }  # fmt: skip
    run = build(from_dict(values))
    before = run.task.evaluate(run.policy, 0)["return"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as where updates cannot be traced
        learn(run)
    assert before < 6 < 7 < run.task.evaluate(run.policy, 0)["return"]
    assert run.store.kept["obs"].dtype == torch.uint8
