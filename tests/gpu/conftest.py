"""Tests marked ``gpu``: what the stages compute on an accelerator, beside the CPU (``pytest -m gpu``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode wants it before the first product


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell whoever asked how many tests there are: one that a time limit cut off is in no file of outcomes."""
    if path := os.environ.get("COLLECTED"):
        Path(path).write_text(str(len(session.items)), encoding="utf-8")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The accelerator; with ``--device cpu`` the CPU, where these tests can show their own mistakes alone."""
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no accelerator")
    return name
