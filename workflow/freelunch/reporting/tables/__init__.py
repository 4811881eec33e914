"""One module per table, each with ``build(rows) -> Table``; ``reporting.tabulate`` imports them by name."""
