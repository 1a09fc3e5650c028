"""SQL: reading it. Nothing here is imported by a partition process."""
