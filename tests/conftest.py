"""Settings of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import setuptools  # noqa: F401 - before anything imports distutils, which it replaces: torch's compiler needs that
import torch

if not torch.cuda.is_available():
    import fake_gpu  # noqa: F401 - sets up its device before anything goes backward

# tiny matrices: a second thread costs more than it gives, and its speed depends on what else the machine does
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a result of every stage, to be copied from."""
    from one_of_each import make_all

    root = tmp_path_factory.mktemp("made")
    make_all(root)
    return root


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", choices=["cuda", "cpu"], help="where tests marked gpu compute")
