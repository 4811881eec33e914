"""From tidy rows to tables, figures, verdicts and the report: every view of a suite is a function of its rows."""
