"""One process, one thread, one partition: its tables, indexes and WAL."""
