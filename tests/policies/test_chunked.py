import pytest
import torch

from anypo.policies.language.filter import Filter
from anypo.policies.language.output_head import functionals

FILTERS = [Filter(), Filter(temperature=0.7), Filter(top_k=5), Filter(top_p=0.8), Filter(1.3, 7, 0.9)]


def problem(dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=g, dtype=dtype).requires_grad_()
    head = torch.nn.Linear(6, 17, bias=False, dtype=dtype)
    head.weight.data.copy_(torch.randn(17, 6, generator=g, dtype=dtype))
    taken = torch.randint(17, (11,), generator=g)
    weights = torch.randn(2, 11, generator=g, dtype=dtype)
    return hidden, head, taken, weights


def run(chunk: int, filter: Filter, dtype: torch.dtype = torch.float64):
    hidden, head, taken, weights = problem(dtype)
    found = functionals(hidden, head, taken, filter, ("logp", "entropy"), 17, chunk=chunk)
    loss = (weights[0] * found["logp"] + weights[1] * found["entropy"]).sum()
    return found["logp"], found["entropy"], *torch.autograd.grad(loss, (hidden, head.weight))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_chunks_equal_the_dense_layer_in_value_and_gradient(filter: Filter, tokens: int):
    for piece, dense in zip(run(17 * tokens, filter), run(10**9, filter), strict=True):
        torch.testing.assert_close(piece, dense, rtol=1e-12, atol=1e-12)
        assert dense.isfinite().all(), "taken tokens stay in the support"


@pytest.mark.parametrize("bias", [False, True])
def test_autocast_chunks_equal_the_dense_layer_up_to_rounding(bias: bool):
    """With a bias the layer is computed by checkpointing, without one by its own backward pass."""
    hidden, head, taken, weights = problem(torch.float32)
    if bias:
        head.bias = torch.nn.Parameter(torch.ones(17))
    gradients = []
    for chunk in (51, 10**9):
        with torch.autocast("cpu", torch.bfloat16):
            found = functionals(hidden, head, taken, Filter(), ("logp", "entropy"), 17, chunk=chunk)
            (weights[0] * found["logp"] + weights[1] * found["entropy"]).sum().backward()
        assert {x.dtype for x in found.values()} == {torch.float32}
        gradients.append((hidden.grad, head.weight.grad))
        hidden.grad = head.weight.grad = None
    for one, two in zip(*gradients, strict=True):
        assert (one - two).norm() < 0.02 * two.norm()


def test_a_frozen_layer_or_frozen_hidden_states_get_no_gradient():
    hidden, head, taken, _ = problem()
    head.requires_grad_(False)
    functionals(hidden, head, taken, Filter(), ("logp",), 17, chunk=34)["logp"].sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    head.requires_grad_(True)
    functionals(hidden.detach(), head, taken, Filter(), ("logp",), 17, chunk=34)["logp"].sum().backward()
    assert head.weight.grad is not None


def test_unfiltered_functionals_are_those_of_torch_distributions():
    hidden, head, taken, _ = problem()
    found = functionals(hidden, head, taken, Filter(), ("logp", "entropy"), 17, chunk=34)
    categorical = torch.distributions.Categorical(logits=head(hidden))
    torch.testing.assert_close(found["logp"], categorical.log_prob(taken))
    torch.testing.assert_close(found["entropy"], categorical.entropy())


def test_only_the_wanted_functionals_are_computed():
    hidden, head, taken, _ = problem()
    assert set(functionals(hidden, head, taken, Filter(), ("entropy", "value"), 17)) == {"entropy"}


@pytest.mark.parametrize("filter", FILTERS)
def test_half_precision_logits_are_normalised_in_float32(filter: Filter):
    logp, entropy, *gradients = run(34, filter, torch.bfloat16)
    assert logp.dtype == entropy.dtype == torch.float32
    assert all(g.isfinite().all() for g in gradients)


def test_chunks_keep_no_logits_for_backward():
    hidden, head, taken, _ = problem()
    kept: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        functionals(hidden, head, taken, Filter(), ("logp", "entropy"), 17, chunk=17)
    assert max(kept, default=0) < 11 * 17


def test_filter_known_answers():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()

    def p(filter: Filter, keep: int | None = None) -> list[float]:
        return filter(logits, None if keep is None else torch.tensor([keep])).exp()[0].tolist()

    assert p(Filter()) == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert p(Filter(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0])
    assert p(Filter(top_k=9)) == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert p(Filter(top_p=0.5)) == pytest.approx([1, 0, 0, 0])
    assert p(Filter(top_p=0.6)) == pytest.approx([0.625, 0.375, 0, 0])
    assert p(Filter(top_k=2, top_p=0.62)) == pytest.approx([1, 0, 0, 0]), "top-p acts on what top-k leaves"
    assert p(Filter(top_k=1), keep=3) == pytest.approx([0.5 / 0.55, 0, 0, 0.05 / 0.55]), "the taken token stays"
    squares = [0.25, 0.09, 0.0225, 0.0025]
    assert p(Filter(temperature=0.5)) == pytest.approx([x / sum(squares) for x in squares])
