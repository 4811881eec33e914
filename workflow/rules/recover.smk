"""Repair a pruned model."""


rule recover:
    input:
        upstream("recovered"),
    output:
        "results/recovered/{name}/manifest.json",
    log:
        "results/logs/recovered/{name}.log",
    benchmark:
        "results/benchmarks/recovered/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: TORCH_THREADS
    resources:
        mem_mb=memory("recovered"),
        runtime=1440,
        gpu=1,
    params:
        code=method_code(
            "recovered", lambda spec: spec.pruned if spec.interleaved else None
        ),
    message:
        "recover {wildcards.name}"
    script:
        "../scripts/recover.py"
