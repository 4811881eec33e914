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
    params:
        code=code("stages.recover"),
        spec=spec("recovered"),
    resources:
        mem_mb=memory("recovered"),
        runtime=1440,
        gpu=1,
    threads: TORCH_THREADS
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/recover.py"
