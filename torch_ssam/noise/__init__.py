"""The noise on weights: which tensors, which draw, what scale, and the exact clean bits back. Imports ops only."""
