"""Settings of the C allocator."""

from __future__ import annotations

import ctypes
import sys

from anypo.kernels import plain

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def keep_memory() -> None:
    """Keep freed memory in the process, on Linux with fast kernels.

    An update consists of tensors of about half a megabyte. By default glibc gives them back to the system after the update, and
    mapping their pages again can take longer than computing them.
    """
    if plain() or sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl's allocator has no such settings
        return
    for parameter, size in ((TRIM_THRESHOLD, 256 << 20), (MMAP_THRESHOLD, 32 << 20)):
        mallopt(parameter, size)
