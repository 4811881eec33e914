"""freelunch: prune a trained network, repair it locally against the dense network's activations, and measure it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freelunch.errors import FreelunchError as FreelunchError
    from freelunch.library import Pruned as Pruned
    from freelunch.library import perplexity as perplexity
    from freelunch.library import prune as prune
    from freelunch.library import reconstruct as reconstruct
    from freelunch.library import save as save

__version__ = "0.1.0"

# plugs the second paper (sections, specs, runs, costs) into the first, which does not know it; imports no torch
import_module(".vision.classifier_costs", __name__)

_PLACES = {
    **dict.fromkeys(("Pruned", "prune", "reconstruct", "perplexity", "save"), "library"),
    "FreelunchError": "errors",
}


def __getattr__(name: str) -> Any:
    # looked up when asked for: importing the package stays cheap, and jobs of the pipeline never import the library
    if name in _PLACES:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
