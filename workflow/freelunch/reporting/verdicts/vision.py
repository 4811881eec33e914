"""The claims of the second paper, which is about convolutional networks."""

from __future__ import annotations

from typing import ClassVar

from .. import claims
from .verdict import Case, Claim, Evidence


class _Vision(Claim):
    """Rows of language models say nothing about it, whatever they hold."""

    source: ClassVar[str] = claims.SECOND
    needs: ClassVar[str] = (
        "accuracies of image classifiers with batch norms, which the pipeline does not train or prune"
    )
    rule: ClassVar[str] = "None yet: accuracies before and after repair, by allocation and sparsity, would decide it."

    def cases(self, evidence: Evidence) -> list[Case]:
        return []


class Allocation(_Vision):
    """ERK against LAMP after the same repair."""

    name: ClassVar[str] = "allocation"


class Transition(_Vision):
    """Recalibration alone against repair."""

    name: ClassVar[str] = "transition"
