"""Value networks compute what their formula says, forwards and backwards, by every way their products are made."""

import pytest
import torch

from anypo.networks.perceptrons import Ensemble
from anypo.policies.control.distributions import Squashed


def reference(net, x):
    """The layers one by one, by recorded operations."""
    out, last = x.expand(net.size, *x.shape), len(net.weights) - 1
    for k, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        out = out @ weight + bias
        if k < last:
            if net.norm:
                out = torch.nn.functional.layer_norm(out, out.shape[-1:]) * net.gains[k] + net.shifts[k]
            out = out.relu()
    return out.transpose(0, 1)


def gradients(out, along, inputs):
    return torch.autograd.grad((out * along).sum(), inputs, allow_unused=True)


@pytest.mark.parametrize("outputs", [1, 2, 6, 20])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hidden", [(), (24,), (24, 24, 24)])
def test_values_and_gradients_are_those_of_the_layers_one_by_one(outputs, size, norm, hidden):
    g = torch.Generator().manual_seed(0)
    net = Ensemble(size, (7, *hidden, outputs), norm, g)
    x, more = (torch.randn(40, width, generator=g, requires_grad=True) for width in (4, 3))
    expected = reference(net, torch.cat([x, more], -1))
    out, along = net(x, more), torch.randn(40, size, outputs, generator=g)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(net(torch.cat([x, more], -1)), expected, rtol=1e-5, atol=1e-6)
    inputs = [x, more, *net.parameters()]
    for a, b in zip(gradients(out, along, inputs), gradients(expected, along, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_frozen_networks_pass_the_gradient_to_their_inputs_alone():
    g = torch.Generator().manual_seed(0)
    net = Ensemble(2, (7, 24, 24, 1), False, g)
    x, more = torch.randn(40, 4, generator=g), torch.randn(40, 3, generator=g, requires_grad=True)
    of_more, *detached = gradients(net(x, more, frozen=True), 1.0, [more, *net.parameters()])
    torch.testing.assert_close(of_more, gradients(net(x, more), 1.0, [more])[0])
    assert all(grad is None for grad in detached)


def test_rounded_products_have_nearly_the_exact_gradient():
    g = torch.Generator().manual_seed(0)
    net = Ensemble(2, (7, 64, 64, 1), False, g)
    x, along = torch.randn(200, 7, generator=g), torch.randn(200, 2, 1, generator=g)
    exact = gradients(net(x), along, list(net.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(net(x), along, list(net.parameters()))
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert float((a - b).norm()) < 0.06 * float(a.norm()) + 1e-6


def test_a_squashed_sample_has_the_gradient_of_its_formula():
    g = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(9, 3, generator=g, dtype=torch.float64) for _ in range(3))
    inputs = mean.requires_grad_(), log_std.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: Squashed(m, s).at(noise), inputs)
    action, logp = Squashed(*inputs).at(noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    transformed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    torch.testing.assert_close(logp, transformed.log_prob(action).sum(-1))
