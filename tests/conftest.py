"""Shapes in signatures are checked while tests run; tests share the machine, so one thread each."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("anypo", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
pytest_plugins = ["suite"]
