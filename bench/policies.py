"""The eviction policies by name: the buffer pool's own, and those that it is compared with."""

from __future__ import annotations

from partitions.classic_policies import Arc, Clock, Lru, MidpointLru
from partitions.tiny_lfu import WTinyLfu

POLICIES: dict[str, type[Lru] | type[Clock] | type[MidpointLru] | type[Arc] | type[WTinyLfu]] = {
    "w-tinylfu": WTinyLfu,
    "lru": Lru,
    "clock": Clock,
    "arc": Arc,
    "midpoint": MidpointLru,
}
DEFAULT = "w-tinylfu"
