"""From ``config.yaml`` to the stages that it takes: typed sections, specs with keys, the plan and what it refuses."""
