"""The whole cluster in one process, from a seed; and the judges of what its clients, or those of a real one, saw."""
