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
        code=rows_code,
        families=families,
    message:
        "collect the rows of suite {wildcards.suite}"
    script:
        "../scripts/report.py"


for kind, endings in {
    "table": ["csv", "md", "tex"],
    "figure": ["pdf", "svg", "png", "md"],
}.items():

    rule:
        name:
            kind
        input:
            references,
            rows="results/{suite}/rows.parquet",
        output:
            [f"results/{{suite}}/{kind}s/{{view}}.{ending}" for ending in endings],
        log:
            f"results/logs/{kind}/{{suite}}-{{view}}.log",
        conda:
            "../../envs/report.yaml"
        params:
            code=view_code(kind),
        message:
            f"{kind} {{wildcards.view}} of suite {{wildcards.suite}}"
        script:
            "../scripts/report.py"


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
        code=stages.code_of_report(),
        suite=suite_digest,
        configs=[relpath(path) for path in workflow.overwrite_configfiles],
    message:
        "report of suite {wildcards.suite}"
    script:
        "../scripts/report.py"
