"""Benchmarks: ``python -m benchmarks``. Seconds vary between machines and runs; the ratios are what counts."""
