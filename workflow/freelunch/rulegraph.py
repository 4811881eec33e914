"""The rules that a suite goes through: how many jobs each has, and which reads what which wrote."""

from __future__ import annotations

from collections import Counter

from freelunch.plan.plan import Plan
from freelunch.plan.spec import STAGES


def rule_graph(plan: Plan, suite: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Jobs by rule, upstream first, and the edges between rules; rules without a job are left out."""
    specs = plan.needed(suite)
    counts = Counter(spec.stage for spec in specs)
    edges = {(above.rule, spec.rule) for spec in specs for above in spec.upstream()}
    if counts["shards"]:
        edges.add(("shard", "reconstruct"))
    origins = [(spec.rule, spec.origin.wheel) for spec in specs if spec.origin is not None]
    fetched = {(rule, wheel) for rule, wheel in origins if wheel is not None}
    edges |= {("fetch", rule) for rule, _ in fetched}
    views = plan.config.suites[suite]
    jobs = {
        "fetch": len({wheel for _, wheel in fetched}),
        **{kind.rule: counts[stage] for stage, kind in STAGES.items()},
        "collect": 1, "table": len(views.tables), "figure": len(views.figures), "report": 1,
    }  # fmt: skip
    edges |= {("classifier", "collect"), ("sparse_classifier", "collect")}
    edges |= {("evaluate", "collect"), ("collect", "table"), ("collect", "figure"), ("collect", "report")}
    edges |= {("table", "report"), ("figure", "report")}
    present = {rule: count for rule, count in jobs.items() if count}
    return present, sorted(edge for edge in edges if edge[0] in present and edge[1] in present)
