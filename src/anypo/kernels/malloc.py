"""Settings of the C allocator."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def keep_memory() -> None:
    """Let freed memory stay with the process. glibc would give the tensors of half a megabyte an update is made of back to the
    system after it, and making their pages anew for the next one can take longer than computing them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, size in ((TRIM_THRESHOLD, 256 << 20), (MMAP_THRESHOLD, 32 << 20)):
            mallopt(parameter, size)
