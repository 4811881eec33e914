"""The second paper: classifiers and their label-free repair. Importing it declares its tables and figures."""

from __future__ import annotations

from freelunch.report.views import RULES, View, register

RULES |= {
    "allocation": "vision.classifier_views:allocation_matters",
    "transition": "vision.classifier_views:repair_recovers",
}

register("table", "accuracy", View("vision.classifier_views:accuracy_table", claim="allocation", reading="classifiers"))
register("figure", "accuracy", View("vision.classifier_views:accuracy", claim="allocation", reading="classifiers"))
register("figure", "allocation", View("vision.classifier_views:allocation", claim="allocation"))
register("figure", "density", View("vision.classifier_views:density", claim="allocation"))
register("figure", "transition", View("vision.classifier_views:transition", claim="transition"))
