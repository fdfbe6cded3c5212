"""What becomes of calls, and how to wait for it. `liteq.result` has the public names."""
