"""How rules look things up in the plan. No rule knows a parameter that is not in a spec."""

SPECS = {stage: PLAN.stage(stage) for stage in STAGES}
EXECUTION = PLAN.config.execution

# A job asks for none only if it was told that there are none: where `auto` finds some is where it runs.
GPUS = 0 if EXECUTION.device == "cpu" else 1


def of(stage, value):
    """What a job is given, by its spec."""
    return lambda wildcards: value(SPECS[stage][wildcards.name])


def threads(spec):
    """Of a job; jobs that one was split into share what it would have."""
    wanted = stages.threads_of(spec, PLAN.config)
    if spec.siblings == 1:
        return wanted
    return max(1, min(wanted, workflow.cores // spec.siblings))


def memory(stage):
    """MB that a job asks for, by how often a cluster has tried it."""
    return lambda wildcards, attempt: stages.memory_of(
        SPECS[stage][wildcards.name], PLAN.config, attempt
    )


def evaluations(wildcards):
    """Manifests of everything whose numbers stand in the rows of a suite."""
    runs = PLAN.runs[wildcards.suite]
    return sorted({spec.manifest for run in runs for spec in run.read})


def rows_code(wildcards):
    """The code that makes the rows of a suite."""
    return stages.code_of_rows(run.evaluation for run in PLAN.runs[wildcards.suite])


def families(wildcards):
    """Families of the models of a suite: they stand in the rows, and in no key."""
    models = [spec for spec in PLAN.needed(wildcards.suite) if spec.stage == "models"]
    families = {spec.model: spec.source.family for spec in models}
    return [f"{model}: {family}" for model, family in families.items() if family]


def suite_digest(wildcards):
    """Hash of what the report shows of the config: a key has the parameters of runs, not what they are called."""
    return sha256(resolved(PLAN, wildcards.suite).encode()).hexdigest()[:16]


def views(wildcards):
    """Tables and figures of a suite."""
    suite, folder = PLAN.config.suites[wildcards.suite], f"results/{wildcards.suite}"
    tables = [f"{folder}/tables/{view}.csv" for view in suite.tables]
    return tables + [f"{folder}/figures/{view}.svg" for view in suite.figures]


def references(wildcards):
    """Published numbers, for the view that compares with them."""
    return sorted(REFERENCES.glob("*.csv")) if wildcards.view == "published" else []


def view_code(kind):
    """The code of tables or figures: the report as a whole."""

    def digest(wildcards):
        try:
            find(kind, wildcards.view)
        except FreelunchError as error:
            raise WorkflowError(str(error)) from None
        return stages.code_of_report()

    return digest
