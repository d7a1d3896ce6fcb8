"""The operators of csrc/ops, loaded, described to torch.compile, and taught DTensors. Imports nothing of the package."""
