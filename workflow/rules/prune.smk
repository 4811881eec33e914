"""Masks, from the dense weights and statistics."""


def criterion_code(wildcards):
    """The stage's own code, and of the criteria only the one that is used."""
    criterion = SPECS["pruned"][wildcards.name].criterion
    return code("stages.prune", f"criteria.{criterion}")


rule prune:
    input:
        upstream("pruned"),
    output:
        "results/pruned/{name}/manifest.json",
    log:
        "results/logs/pruned/{name}.log",
    benchmark:
        "results/benchmarks/pruned/{name}.tsv"
    params:
        code=criterion_code,
        spec=spec("pruned"),
    resources:
        mem_mb=memory("pruned"),
        runtime=240,
        gpu=1,
    threads: TORCH_THREADS
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/prune.py"
