"""One module per figure, each with ``draw(rows) -> Figure``; ``reporting.draw`` imports them by name."""
