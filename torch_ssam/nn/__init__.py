"""Modules: DiagonalLinear."""
