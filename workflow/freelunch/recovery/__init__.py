"""Recovery: what repairs a pruned network."""
