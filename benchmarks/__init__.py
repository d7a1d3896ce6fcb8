"""Benchmarks: `make bench` runs them and writes docs/benchmarks.md. They are measurements, not tests."""
