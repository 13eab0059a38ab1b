"""The memory of this machine, or of the container or service that we run in."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEGABYTE = 1 << 20
GROUPS = Path("/sys/fs/cgroup")


def machine_memory() -> int:
    """Megabytes: what there is, or the least limit of a control group that we belong to."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_limits()]) // MEGABYTE


def _limits() -> Iterator[int]:
    with suppress(OSError):  # no Linux
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            own = Path(line.rpartition(":")[2].lstrip("/"))
            for group in (own, *own.parents):  # of version 2, and of version 1
                for file in (GROUPS / group / "memory.max", GROUPS / "memory" / group / "memory.limit_in_bytes"):
                    with suppress(OSError, ValueError):  # not there, or no limit
                        yield int(file.read_text())
