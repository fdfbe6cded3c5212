"""What liteq costs, measured beside another queue: `python -m benchmarks`, or `make bench`."""
