"""Pure batched tensor functions: the whole batch at once, on any device, the random generator an argument."""
