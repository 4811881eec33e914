"""A pruning method: by which scores, in what pattern, how that is spread, and what comes after. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from freelunch.errors import FreelunchError, naming
from freelunch.pruning.allocations import ALLOCATIONS, Allocation, parse_allocation
from freelunch.pruning.criteria import CRITERIA, Criterion, parse_criterion
from freelunch.pruning.methods import describe
from freelunch.pruning.patterns import Pattern, Structured, parse_pattern
from freelunch.pruning.refinements import Refinement, describe_refinements, parse_refinements


@dataclass(frozen=True)
class Method:
    """The four parts of a method; any criterion goes with any pattern."""

    criterion: Criterion
    pattern: Pattern
    allocation: Allocation
    refinements: tuple[Refinement, ...] = ()

    @property
    def needs_gram(self) -> bool:
        """Whether any part looks at Gram matrices of the inputs."""
        refined = any(refinement.needs_gram for refinement in self.refinements)
        return self.criterion.needs_gram or self.allocation.needs_gram or refined

    @property
    def needs_gram_first(self) -> bool:
        """Whether Gram matrices of the dense model are looked at before anything is pruned."""
        return self.allocation.needs_gram or (self.is_global and self.criterion.needs_gram)

    @property
    def changes_weights(self) -> bool:
        """Whether the weights that stay are changed, or only chosen."""
        updates = self.criterion.changes_weights and not isinstance(self.pattern, Structured)
        return updates or any(refinement.changes_weights for refinement in self.refinements)

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold its parts."""
        parts = [self.criterion, self.allocation, *self.refinements]
        return [type(part).__module__.split(".", 1)[1] for part in parts]

    @property
    def is_global(self) -> bool:
        """Whether one threshold over the whole model says how much every matrix loses."""
        return getattr(self.pattern, "group", "") == "model"

    def check(self, blocks: int) -> None:
        """Raise if the parts do not go together in a model of so many blocks.

        Raises:
            FreelunchError: the allocation does not fit the pattern or the model, or a refinement would break the
                pattern.
        """
        name = describe(self.allocation)
        if self.is_global and name != "uniform":
            raise FreelunchError(f"pattern {self.pattern} leaves allocation {name} nothing to do; use uniform")
        if isinstance(self.pattern, Structured):
            if not self.allocation.by_block:
                raise FreelunchError(
                    f"allocation {name} gives the matrices of a block different sparsities, and pattern {self.pattern} "
                    "prunes their heads and channels together; use uniform, owl or given"
                )
            for refinement in self.refinements:
                if not refinement.structured:
                    raise FreelunchError(f"refinement {describe(refinement)} would break up pattern {self.pattern}")
        with naming(f"allocation {name}"):
            self.allocation.check(blocks, self.pattern)


def parse_method(criterion: str, pattern: str, allocation: str, refinement: str) -> Method:
    """The method that the axes of a run stand for."""
    return Method(
        parse_criterion(criterion), parse_pattern(pattern), parse_allocation(allocation), parse_refinements(refinement)
    )


canonical_criterion, canonical_allocation = CRITERIA.canonical, ALLOCATIONS.canonical


def canonical_pattern(text: object) -> str:
    """The one way a pattern is written in specs and rows."""
    return str(parse_pattern(text))


def canonical_refinement(text: object) -> str:
    """The one way refinements are written in specs and rows."""
    return describe_refinements(parse_refinements(text))
