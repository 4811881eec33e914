"""``torch.compile`` for what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from freelunch.errors import FreelunchError

_VARIANTS = 32
"""Of a module: training batches and validation batches, the last of either, with gradients of its input or without."""


@contextmanager
def compiled(blocks: Iterable[nn.Module], wanted: bool) -> Iterator[None]:
    """Compile what the children of blocks do, while the context is open; ``wanted`` is ``execution.compile``.

    The children, not the blocks: halves are cut between them, by hooks and stubs that compiled code would not look at.
    Blocks of the same kind share the code, so that it is made once for every shape of a batch. Products and attention
    are those of torch in any case; compiled are the chains between them. Left as they are: children with low-rank
    weights, since each such layer is of a class of its own and would be compiled for each block again, and layers of
    torch itself, of which there is nothing to gain.

    Raises:
        FreelunchError: inside, torch could not compile.
    """
    if not wanted:
        yield
        return
    children = dict.fromkeys(child for block in blocks for child in block.children())
    with ExitStack() as restored:
        restored.enter_context(torch._dynamo.config.patch(recompile_limit=_VARIANTS))
        for child in children:
            own = not type(child).__module__.startswith("torch.nn.")
            if own and not any(parametrize.is_parametrized(module) for module in child.modules()):
                child.forward = torch.compile(child.forward, dynamic=False)
                restored.callback(delattr, child, "forward")
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise FreelunchError(f"execution.compile: torch cannot compile here ({reason}); set it to false") from error
