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
    threads: TORCH_THREADS
    resources:
        mem_mb=memory("pruned"),
        runtime=240,
        gpu=1,
    params:
        code=criterion_code,
    message:
        "prune {wildcards.name}"
    script:
        "../scripts/prune.py"
