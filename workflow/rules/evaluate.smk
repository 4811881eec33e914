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
    params:
        code=code("stages.evaluate"),
        spec=spec("evaluation"),
    resources:
        mem_mb=memory("evaluation"),
        runtime=480,
        gpu=1,
    threads: TORCH_THREADS
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/evaluate.py"
