"""Classifiers: prepare images, train, prune and repair."""


rule images:
    input:
        upstream("images"),
    output:
        "results/images/{name}/manifest.json",
    log:
        "results/logs/images/{name}.log",
    benchmark:
        "results/benchmarks/images/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=memory("images"),
        runtime=240,
    params:
        code=stage_code("images"),
    message:
        "prepare images {wildcards.name}"
    script:
        "../scripts/images.py"


rule classifier:
    input:
        upstream("classifiers"),
    output:
        "results/classifiers/{name}/manifest.json",
    log:
        "results/logs/classifiers/{name}.log",
    benchmark:
        "results/benchmarks/classifiers/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: classifier_threads("classifiers")
    resources:
        mem_mb=memory("classifiers"),
        runtime=1440,
        gpu=GPUS,
    params:
        code=stage_code("classifiers"),
    message:
        "train classifier {wildcards.name}"
    script:
        "../scripts/classifier.py"


rule sparse_classifier:
    input:
        upstream("sparse_classifiers"),
    output:
        "results/sparse_classifiers/{name}/manifest.json",
    log:
        "results/logs/sparse_classifiers/{name}.log",
    benchmark:
        "results/benchmarks/sparse_classifiers/{name}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: classifier_threads("sparse_classifiers")
    resources:
        mem_mb=memory("sparse_classifiers"),
        runtime=240,
        gpu=GPUS,
    params:
        code=stage_code("sparse_classifiers"),
    message:
        "prune and repair classifier {wildcards.name}"
    script:
        "../scripts/sparse_classifier.py"
