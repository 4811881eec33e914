"""Settings of all tests."""

from __future__ import annotations

import torch

# tiny matrices: a second thread costs more than it gives, and its speed depends on what else the machine does
torch.set_num_threads(1)
