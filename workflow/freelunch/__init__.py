"""freelunch: prune a trained network, repair it locally against the dense network's activations, and measure it."""

__version__ = "0.1.0"
