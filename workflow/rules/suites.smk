"""One target per suite, by the suite's name: `snakemake --cores all <suite>`."""

for suite in PLAN.runs:

    rule:
        name:
            suite
        input:
            suite_targets(suite),
