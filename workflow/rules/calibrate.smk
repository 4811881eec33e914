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
    params:
        code=code("stages.calibrate"),
        spec=spec("calibration"),
    resources:
        mem_mb=memory("calibration"),
        runtime=60,
    threads: 1
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/calibrate.py"
