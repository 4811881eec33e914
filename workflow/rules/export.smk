"""A pruned or recovered model as a directory that transformers loads."""


rule export:
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
        code=code("stages.export"),
    message:
        "export {wildcards.name}"
    script:
        "../scripts/export.py"
