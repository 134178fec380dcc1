"""The command line."""

from anypo.cli import catalogue, compare, data, evidence, procedures, run  # noqa: F401 - each registers its commands
from anypo.cli.app import main

__all__ = ["main"]
