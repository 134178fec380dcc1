"""Row flags may be booleans or numbers, as data files hold them."""

import pytest
import torch

import anypo
from anypo.errors import UsageError
from anypo.parts.registry import find, register_part


@pytest.mark.parametrize("kind", [torch.bool, torch.float64, torch.long])
def test_done_and_truncated_may_be_numbers(kind):
    batch = anypo.Trajectories(
        logp=torch.zeros(2, 3, dtype=torch.float64),
        value=torch.ones(2, 3, dtype=torch.float64),
        reward=torch.ones(2, 3, dtype=torch.float64),
        bootstrap=torch.tensor([5.0, 5.0], dtype=torch.float64),
        done=torch.tensor([1, 0]).to(kind),
    )
    returns = anypo.method("ppo", credit=[anypo.parts.credit.Gae(1.0, 1.0)]).prepare(batch).returns
    assert returns[:, 0].tolist() == [3.0, 8.0]
    scored = batch.but(
        score=torch.tensor([1.0, 0.0]).double(), group=torch.zeros(2).long(), truncated=torch.tensor([1, 0]).to(kind)
    )
    assert anypo.method("dapo").prepare(scored).mask.any(1).tolist() == [False, True]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(UsageError, match="has a part 'clip' already"):
        register_part("trust")(type("Clip", (), {}))


def test_a_part_answers_to_its_former_name_and_says_the_new_one() -> None:
    with pytest.warns(UserWarning, match="'weighted-bc' now"):
        assert find("trust", "clone") is find("trust", "weighted-bc")
