"""Recover a pruned model: reconstruct it, retrain it, or repair it."""


rule shard:
    input:
        upstream("shards"),
    output:
        "results/shards/{name}/manifest.json",
    log:
        "results/logs/shards/{name}.log",
    benchmark:
        "results/benchmarks/shards/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: cores_per_shard
    resources:
        mem_mb=memory("shards"),
        runtime=1440,
        gpu=GPUS,
    params:
        code=stage_code("shards"),
    message:
        "reconstruct, shard {wildcards.name}"
    script:
        "../scripts/shard.py"


rule reconstruct:
    input:
        upstream("reconstructed"),
        shards,
    output:
        "results/reconstructed/{name}/manifest.json",
    log:
        "results/logs/reconstructed/{name}.log",
    benchmark:
        "results/benchmarks/reconstructed/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: torch_threads("reconstructed")
    resources:
        mem_mb=memory("reconstructed"),
        runtime=1440,
        gpu=GPUS,
    params:
        code=stage_code("reconstructed"),
    message:
        "reconstruct {wildcards.name}"
    script:
        "../scripts/reconstruct.py"


rule retrain:
    input:
        upstream("retrained"),
    output:
        "results/retrained/{name}/manifest.json",
    log:
        "results/logs/retrained/{name}.log",
    benchmark:
        "results/benchmarks/retrained/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: TORCH_THREADS
    resources:
        mem_mb=memory("retrained"),
        runtime=1440,
        gpu=GPUS,
    params:
        code=stage_code("retrained"),
    message:
        "retrain {wildcards.name}"
    script:
        "../scripts/retrain.py"


rule repair:
    input:
        upstream("repaired"),
    output:
        "results/repaired/{name}/manifest.json",
    log:
        "results/logs/repaired/{name}.log",
    benchmark:
        "results/benchmarks/repaired/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: TORCH_THREADS
    resources:
        mem_mb=memory("repaired"),
        runtime=240,
        gpu=GPUS,
    params:
        code=stage_code("repaired"),
    message:
        "repair {wildcards.name}"
    script:
        "../scripts/repair.py"
