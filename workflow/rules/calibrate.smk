"""Sample the calibration and validation crops."""


rule calibrate:
    input:
        upstream("calibration"),
    output:
        "results/calibration/{name}/manifest.json",
    log:
        "results/logs/calibration/{name}.log",
    benchmark:
        "results/benchmarks/calibration/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("calibration"),
        runtime=60,
    params:
        code=stage_code("calibration"),
    message:
        "sample calibration {wildcards.name}"
    script:
        "../scripts/calibrate.py"
