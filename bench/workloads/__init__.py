"""One file a workload: its calls, and beside them each peer's implementation with the same reads and writes."""
