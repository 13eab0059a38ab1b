"""The memory of this machine, or of the container that we run in."""

import os
from contextlib import suppress
from pathlib import Path

MEGABYTE = 1 << 20
CONTAINER = Path("/sys/fs/cgroup/memory.max")  # of control groups, version 2; "max" where there is no limit


def machine_memory() -> int:
    """Megabytes."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        whole = min(whole, int(CONTAINER.read_text()))
    return whole // MEGABYTE
