"""SQLite's sqllogictest: its format, and a runner against an engine in this process."""
