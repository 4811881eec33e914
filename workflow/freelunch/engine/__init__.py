"""The streaming engine: hidden states go through a network with one block's weights in memory at a time."""
