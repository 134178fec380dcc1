"""Small networks: the written-out layers and their gradient are those of torch, at every size and with either activation."""

import pytest
import torch
from torch import nn

from anypo.kernels.mlp import LARGEST, ROWS, SMALL, build_mlp, tanh_


def test_the_fast_tanh_is_tanh():
    x = torch.linspace(-30, 30, 2 * SMALL)
    for dtype, error in ((torch.float32, 3e-7), (torch.float64, 1e-15)):
        torch.testing.assert_close(tanh_(x.to(dtype, copy=True)), x.to(dtype).tanh(), atol=error, rtol=0)


@pytest.mark.parametrize("rows", [0, 1, 40, 2 * ROWS, LARGEST + ROWS + 3])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("widths", [(3, 5), (4, 64, 64, 2), (40, 32, 24, 33)], ids=str)
def test_the_written_out_gradient_is_that_of_the_layers(rows, activation, widths):
    generator = torch.Generator().manual_seed(0)
    net = build_mlp(widths, 1.0, generator, activation)
    x = torch.randn(rows, widths[0], generator=generator, requires_grad=True)
    weight = torch.randn(rows, widths[-1], generator=generator)
    plain = x
    for layer in net:
        plain = layer(plain)
    inputs = [x, *net.parameters()]
    torch.testing.assert_close(net(x), plain, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain, atol=1e-5, rtol=1e-5)
    gradients = zip(
        torch.autograd.grad(net(x), inputs, weight), torch.autograd.grad(plain, inputs, weight), strict=True
    )
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.norm())), rtol=1e-5)


def test_frozen_layers_inner_layers_and_expanded_gradients():
    net = build_mlp((4, 64, 64, 20), 1.0, torch.Generator().manual_seed(1))
    x = torch.randn(ROWS, 4)
    inner = net[:-1]
    torch.testing.assert_close(inner(x), net[3](net[2](net[1](net[0](x)))), atol=1e-5, rtol=1e-5)
    inner(x).sum().backward()  # the gradient of its output is one expanded number
    assert [p.grad is None for p in net.parameters()] == [False] * 4 + [True] * 2
    for p in net[0].parameters():
        p.requires_grad_(False)
        p.grad = None
    net(x).sum().backward()
    assert [p.grad is None for p in net.parameters()] == [True] * 2 + [False] * 4


def test_other_types_shapes_and_autocast_take_the_layers_as_they_are():
    net = build_mlp((4, 16, 2), 1.0, torch.Generator().manual_seed(2))
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(net(x).flatten(0, 1), net(x.flatten(0, 1)), atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x[0]).dtype == torch.bfloat16
    assert net.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_folded_weights_are_the_same_function(activation):
    net = build_mlp((4, 64, 64, 2), 1.0, torch.Generator().manual_seed(3), activation)
    for p in net.parameters():
        p.data += 0.1
    for rows in (1, 64, ROWS):
        x = 3 * torch.randn(rows, 4)
        with torch.no_grad():
            torch.testing.assert_close(net.fold_weights()(x), net(x), atol=1e-5, rtol=1e-5)
