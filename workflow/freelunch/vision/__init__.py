"""Convolutional classifiers: networks, images, training, pruning, and repair without labels (arXiv 2605.21972)."""
