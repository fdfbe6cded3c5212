"""The parts of a worker. Its loop, in `liteq.worker`, puts them together."""
