"""The normalization with a short backward pass is the models' own."""

import pytest
import torch

from anypo.kernels.rms_norm import RootMeanSquare, fast_norms, find_norms
from anypo.policies.language.model import LanguageModel


def test_value_and_gradient_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(3, 5, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(16, generator=generator, dtype=torch.float64).requires_grad_()
    x.requires_grad_()
    want = weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    found = RootMeanSquare.apply(x, weight, 1e-6)
    assert torch.allclose(found, want)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), slope) for y in (found, want)), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize(("kind", "count"), [("qwen2", 5), ("gpt2", 0)])
def test_norms_are_recognized_and_change_neither_loss_nor_gradients(tiny_model, kind, count):
    policy = LanguageModel.load(tiny_model(kind))
    assert len(policy.backbone.norms) == count
    b = policy.pack([[3, 4, 5], [6, 7]], [[8, 9, 3, 4], [5, 6, 7]])
    losses, gradients = [], []
    for modules in (policy.backbone.norms, []):
        policy.backbone.norms = modules
        loss = policy.evaluate(b, {"logp"})["logp"].sum()
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, [p for p in policy.parameters() if p.requires_grad]))
    assert torch.allclose(*losses, atol=1e-5)
    for fast, plain in zip(*gradients, strict=True):
        assert torch.allclose(fast, plain, atol=1e-5)


class Centered(torch.nn.Module):
    """Scales by 1 + w, as some models do."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.zeros(8)), 1e-6

    def forward(self, x):
        return (1 + self.weight) * torch.nn.functional.rms_norm(x, (8,), eps=self.eps)


def test_what_computes_something_else_is_left_alone():
    others = torch.nn.ModuleList([Centered(), torch.nn.LayerNorm(8, bias=False), torch.nn.LayerNorm(8)])
    plain = torch.nn.RMSNorm(8, eps=1e-6)
    assert find_norms(torch.nn.ModuleList([*others, plain])) == [plain]
    with fast_norms([plain]), fast_norms([plain]):
        assert "forward" in vars(plain)
    assert "forward" not in vars(plain)


def test_what_is_computed_again_for_the_backward_pass_is_the_same_in_bfloat16(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        policy = LanguageModel.load(tiny_model("qwen2"), checkpointing=checkpointing)
        b = policy.pack([[3, 4, 5], [6, 7]], [[8, 9, 3, 4], [5, 6, 7]])
        with torch.autocast("cpu", torch.bfloat16):
            loss = policy.evaluate(b, {"logp"})["logp"].sum()
        loss.backward()
        gradients.append(policy.inner.get_input_embeddings().weight.grad)
    assert torch.allclose(*gradients, atol=1e-5)
