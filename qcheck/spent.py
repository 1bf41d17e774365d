"""Where the time of a conversation goes."""

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Spent:
    """Milliseconds by phase, added up over a conversation."""

    tiles: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    generate: float = 0.0


def ms_since(start: float) -> float:
    """Milliseconds since a time of `time.perf_counter`."""
    return (time.perf_counter() - start) * 1e3
