"""What the papers claim, next to what was found: small print and captions of views, and what verdicts are about."""

from __future__ import annotations

import re

SOURCE, SECOND = "arXiv:2510.14444", "arXiv:2605.21972"
PAPERS = {
    SOURCE: (
        "Moritz Wagner, Christophe Roux, Max Zimmer, Sebastian Pokutta. A Free Lunch in LLM Compression: Revisiting "
        "Retraining after Pruning. arXiv:2510.14444, 2025."
    ),
    SECOND: (
        "Qishi Zhan, Minxuan Hu, Liang He. How Sparsity Allocation Shapes Label-Free Post-Pruning Recoverability. "
        "arXiv:2605.21972, 2026."
    ),
}
CLAIMS = {
    "scale": "The gaps that the pruning criterion leaves after reconstruction shrink as models grow.",
    "simple_criterion": "Wanda with proper reconstruction outperforms much more complex criteria (first version).",
    "allocation": (
        "At equal global sparsity the allocation, ERK or LAMP, changes the accuracy after one label-free repair; which "
        "of the two is better depends on architecture, data and sparsity."
    ),
    "transition": (
        "There is a range of sparsities in which recalibrating batch norms alone fails and a repair by activation "
        "statistics recovers the accuracy."
    ),
    "window": (
        "Final quality is largely insensitive to the window as long as it holds at least one nonlinear submodule; "
        "reconstruction of single matrices underperforms, since small errors of matrices accumulate into activation "
        "drift. (Its first version: attention and MLP apart gives the best perplexity.)"
    ),
    "memory": (
        "Attention and MLP apart gives the best perplexity and is nearly the most memory-efficient (first version)."
    ),
    "flow": "The paper compares ways to propagate activations; its numbers are not public.",
    "loss": "The paper compares loss functions of reconstruction; its numbers are not public.",
    "parametrization": "Parameter-efficient fine-tuning suffices for reconstruction.",
    "retraining": (
        "Local reconstruction matches retraining after pruning with more than 10 times less data and compute, also "
        "with parameter-efficient fine-tuning."
    ),
    "criterion": "Reconstruction lowers the importance of the pruning criterion.",
    "calibration": "The paper compares sources of calibration data; its numbers are not public.",
    "zero_shot": "The paper measures zero-shot accuracy too; its numbers are not public.",
    "calibration_size": "The paper varies the amount of calibration data; its numbers are not public.",
    "learning_rate": (
        "No claim; its code selects the best of 8 learning rates and 3 training lengths by the test perplexity. Here "
        "they are selected by the validation perplexity, and by the test perplexity beside it."
    ),
    "drift": (
        "When single matrices are reconstructed, their small errors accumulate into activation drift over the depth, "
        "which is why this underperforms."
    ),
}
"""By the name of the view or of the verdict that is about them; the names of both agree where both are."""
_OF_SECOND = ("allocation", "transition")


def statement(name: str, finding: str) -> str:
    """The claim that a view is about, and on a line of its own what the rows say."""
    source = SECOND if name in _OF_SECOND else SOURCE
    return f"Claim ({source}): {CLAIMS[name]}\nHere: {finding}"


def restructured(text: str) -> str:
    """Text as reStructuredText, one paragraph per line."""
    return "\n\n".join(re.sub(r"([\\*`|_])", r"\\\1", line) for line in text.split("\n")) + "\n"
