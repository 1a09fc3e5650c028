"""One file a peer: how it is started, driven in the way that suits it best, and asked for its state.

A peer is used as a context: entered, its server runs on fresh data in a directory of its own; left, it is gone. It has

    ways(line)                              the manners of driving it that are measured, the best one first
    load(line)                              schema and first rows
    session(line, way, in_flight, tasks)    a context that yields a drive: (stream, seconds) → Outcome
    state(line)                             what its tables say, for `line.verify`
    cpu_s()                                 processor time so far, by role, without this client process
    settings                                what the reader of a figure must know

`cluster` (voltpy with a budget of memory) and `mariadb` serve the commands about memory instead: see `Server` in
bench.larger_than_memory.
"""
