"""What the package does on a GPU: blocks of large models, the dense cache, sparse products."""
