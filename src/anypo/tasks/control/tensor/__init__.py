"""Batched environments as functions of tensors, and the task they make."""

from anypo.tasks.control.tensor.task import ENVIRONMENTS, Tensors

__all__ = ["ENVIRONMENTS", "Tensors"]
