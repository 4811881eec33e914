"""Pruning: criteria, patterns, allocations and refinements, which know tensors and not models."""
