"""Measure a network."""


rule evaluate:
    input:
        upstream("evaluation"),
    output:
        "results/evaluation/{name}/manifest.json",
    log:
        "results/logs/evaluation/{name}.log",
    benchmark:
        "results/benchmarks/evaluation/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: torch_threads("evaluation")
    resources:
        mem_mb=memory("evaluation"),
        runtime=evaluation_minutes,
        gpu=GPUS,
    params:
        code=stage_code("evaluation"),
    message:
        "evaluate {wildcards.name}"
    script:
        "../scripts/evaluate.py"
