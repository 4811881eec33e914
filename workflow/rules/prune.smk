"""Masks, from the dense weights and statistics."""


rule prune:
    input:
        upstream("pruned"),
    output:
        "results/pruned/{name}/manifest.json",
    log:
        "results/logs/pruned/{name}.log",
    benchmark:
        "results/benchmarks/pruned/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: pruning_threads
    resources:
        mem_mb=memory("pruned"),
        runtime=240,
        gpu=1,
    params:
        code=method_code("pruned", lambda spec: spec),
    message:
        "prune {wildcards.name}"
    script:
        "../scripts/prune.py"
