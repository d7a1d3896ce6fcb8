"""The optimizers: SSAM, wrap, how they are driven, what their checkpoints hold. Imports go optim -> noise -> ops."""
