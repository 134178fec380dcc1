"""Two runs of one seed on one machine are equal to the bit, whatever their number of threads."""

import pytest
import torch
import yaml
from killed import FORKS, Command

from anypo import config as configuration
from anypo.loops.learn import learn
from anypo.runs.folder import continue_run, create


def compute_gradients(model, queue):
    """Send how many of six gradients of one batch differ from the first, with two threads."""
    import torch

    from anypo.policies.language.model import LanguageModel
    from anypo.runs.build import be_deterministic

    torch.set_num_threads(2)
    be_deterministic()
    policy = LanguageModel.load(model)
    g = torch.Generator().manual_seed(0)
    kinds = torch.randint(8, 60, (40, 12), generator=g).tolist()
    prompts = [kinds[i] for i in torch.randint(40, (1200,), generator=g).tolist()]
    answers = torch.randint(8, 60, (1200, 3), generator=g).tolist()
    batch = policy.pack(prompts, answers)
    weight = torch.randn(1200, 3, generator=g)
    grads = []
    for _ in range(6):
        policy.zero_grad()
        (policy.evaluate(batch, {"logp"})["logp"] * weight).sum().backward()
        grads.append([p.grad.clone() for p in policy.parameters()])
    queue.put(sum(not all(map(torch.equal, grads[1], other)) for other in grads[2:]))


def test_gradients_through_shared_prompts_do_not_depend_on_the_order_of_threads(tiny_model):
    queue = FORKS.SimpleQueue()
    process = FORKS.Process(target=compute_gradients, args=(str(tiny_model("llama", hidden_size=128)), queue))
    process.start()
    process.join()
    assert queue.get() == 0


def test_the_number_of_threads_is_recorded_and_comes_back(tmp_path):
    before = torch.get_num_threads()
    try:
        values = {"method": "grpo", "task": "bandit", "steps": 4, "checkpoint_every": 1, "threads": 2}
        run = create(configuration.from_dict({**values, "out": str(tmp_path / "r")}))

        def stop(record):
            if record["batch"] == 2:
                raise ConnectionError

        with pytest.raises(ConnectionError):
            learn(run, stop)
        torch.set_num_threads(1)
        continue_run(tmp_path / "r")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


def test_threads_that_are_left_open_are_recorded_too(tmp_path):
    create(configuration.from_dict({"method": "grpo", "task": "bandit", "steps": 1, "out": str(tmp_path / "r")}))
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_the_default_run_with_two_threads_is_equal_to_the_byte(tmp_path):
    for name in ("a", "b"):
        code, _, errors = Command(tmp_path, "train", "grpo", "--threads", 2, "--steps", 3, "--out", name).end()
        assert (code, errors) == (0, "")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
