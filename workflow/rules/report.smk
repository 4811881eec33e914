"""From manifests to rows, from rows to tables, figures and the report."""


localrules:
    collect,
    table,
    figure,
    report,


rule collect:
    input:
        evaluations,
    output:
        csv="results/{suite}/rows.csv",
        parquet="results/{suite}/rows.parquet",
    log:
        "results/logs/collect/{suite}.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=code("stages.collect"),
        families=families,
    message:
        "collect the rows of suite {wildcards.suite}"
    script:
        "../scripts/collect.py"


rule table:
    input:
        references,
        rows="results/{suite}/rows.parquet",
    output:
        csv="results/{suite}/tables/{view}.csv",
        md="results/{suite}/tables/{view}.md",
        tex="results/{suite}/tables/{view}.tex",
    log:
        "results/logs/table/{suite}-{view}.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=view_code("table"),
    message:
        "table {wildcards.view} of suite {wildcards.suite}"
    script:
        "../scripts/view.py"


rule figure:
    input:
        rows="results/{suite}/rows.parquet",
    output:
        pdf="results/{suite}/figures/{view}.pdf",
        svg="results/{suite}/figures/{view}.svg",
        png="results/{suite}/figures/{view}.png",
        md="results/{suite}/figures/{view}.md",
    log:
        "results/logs/figure/{suite}-{view}.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=view_code("figure"),
    message:
        "figure {wildcards.view} of suite {wildcards.suite}"
    script:
        "../scripts/view.py"


rule report:
    input:
        views,
        evaluations,
        rows="results/{suite}/rows.parquet",
    output:
        "results/{suite}/report.html",
    log:
        "results/logs/report/{suite}.log",
    conda:
        "../../envs/report.yaml"
    params:
        code=report_code,
        suite=suite_digest,
        configs=[relpath(path) for path in workflow.overwrite_configfiles],
    message:
        "report of suite {wildcards.suite}"
    script:
        "../scripts/report.py"
