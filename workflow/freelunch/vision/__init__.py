"""The second paper: classifiers and their label-free repair. Importing it declares its tables and figures."""

from __future__ import annotations

from freelunch.report.views import RULES, View, register

RULES |= {"allocation": "vision.views:allocation_matters", "transition": "vision.views:repair_recovers"}

register("table", "accuracy", View("vision.views:accuracy_table", claim="allocation", reading="classifiers"))
register("figure", "accuracy", View("vision.views:accuracy", claim="allocation", reading="classifiers"))
register("figure", "allocation", View("vision.views:allocation", claim="allocation"))
register("figure", "density", View("vision.views:density", claim="allocation"))
register("figure", "transition", View("vision.views:transition", claim="transition"))
