"""Where a worker's jobs run: in child processes, threads, an event loop or its own thread.

`liteq.pools.base` says what every pool promises; `liteq.pool` makes one by its name.
"""
