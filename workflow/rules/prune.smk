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
    threads: lambda wildcards: 1 if small(wildcards) else TORCH_THREADS
    resources:
        mem_mb=memory("pruned"),
        runtime=240,
        gpu=lambda wildcards: 0 if small(wildcards) else GPUS,
    params:
        code=stage_code("pruned"),
    message:
        "prune {wildcards.name}"
    script:
        "../scripts/prune.py"
