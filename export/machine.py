"""How much memory there is left, where the system says so."""

from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def available_bytes() -> int | None:
    """What this process may still take without swapping: what Linux says is available, or what is left of the own
    container's limit if that is less. None on systems that say neither."""
    found = [value for value in (_of_machine(), _of_container()) if value is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    for line in _text(MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024  # it says kB and means KiB
    return None


def _of_container() -> int | None:
    limit, used = (_text(CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if not limit.isdigit() or not used.isdigit():  # "max" where there is no limit
        return None
    # Pages of files that were read count as used, but are given back.
    cached = dict(line.split() for line in _text(CGROUP / "memory.stat").splitlines()).get("inactive_file", "0")
    return max(0, int(limit) - int(used) + int(cached))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
