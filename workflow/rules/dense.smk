"""The dense pass: activations and statistics, shared by every run on the same calibration set; Gram matrices for some."""


rule dense:
    input:
        upstream("dense"),
    output:
        "results/dense/{name}/manifest.json",
    log:
        "results/logs/dense/{name}.log",
    benchmark:
        "results/benchmarks/dense/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: TORCH_THREADS
    resources:
        mem_mb=memory("dense"),
        runtime=480,
        gpu=GPUS,
    params:
        code=stage_code("dense"),
    message:
        "dense pass {wildcards.name}"
    script:
        "../scripts/dense.py"


rule grams:
    input:
        upstream("grams"),
    output:
        "results/grams/{name}/manifest.json",
    log:
        "results/logs/grams/{name}.log",
    benchmark:
        "results/benchmarks/grams/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: TORCH_THREADS
    resources:
        mem_mb=memory("grams"),
        runtime=480,
        gpu=GPUS,
    params:
        code=stage_code("grams"),
    message:
        "Gram matrices {wildcards.name}"
    script:
        "../scripts/grams.py"
