"""What is written down to be called later. `liteq.canvas` has the public names."""
