"""The dense pass: activations and statistics, shared by every run on the same calibration set."""


rule dense:
    input:
        upstream("dense"),
    output:
        "results/dense/{name}/manifest.json",
    log:
        "results/logs/dense/{name}.log",
    benchmark:
        "results/benchmarks/dense/{name}.tsv"
    params:
        code=code("stages.dense"),
        spec=spec("dense"),
    resources:
        mem_mb=memory("dense"),
        runtime=480,
        gpu=1,
    threads: TORCH_THREADS
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/dense.py"
