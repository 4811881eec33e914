"""Benchmarks: ``python -m freelunch.bench``. Seconds vary between machines and runs; the ratios are what counts."""
