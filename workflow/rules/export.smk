"""A pruned or recovered model as a directory that transformers loads."""


rule export_model:
    input:
        upstream("export"),
    output:
        "results/export/{name}/manifest.json",
    log:
        "results/logs/export/{name}.log",
    benchmark:
        "results/benchmarks/export/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=memory("export"),
        runtime=120,
    params:
        code=stage_code("export"),
    message:
        "export {wildcards.name}"
    script:
        "../scripts/export.py"


# What nothing needs by itself: all networks of a suite as models, `export` those of the default suite.
for suite in PLAN.runs:

    rule:
        name:
            f"export-{suite}"
        input:
            exports(suite),


rule:
    name:
        "export"
    input:
        exports(PLAN.config.default_suite),
