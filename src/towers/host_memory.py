"""How much memory this process may use."""

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def host_memory_bytes() -> int:
    """Memory of this machine, or of the control group that this process is in, as of a container, where that is less.

    A group is within all above it, so that the least limit counts; files are those of cgroups(7), versions 1 and 2.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            limits += _limits(_GROUPS, group, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(_GROUPS / "memory", group, "memory.limit_in_bytes")
    return min(limits)


def _limits(root, group, name):
    """Limits of a group and of those above it, as far as their files are seen from here."""
    folder = root / group.lstrip("/")
    files = [one / name for one in (folder, *folder.parents) if one == root or root in one.parents]
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]
