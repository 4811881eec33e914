"""What a plan says that its runs take, every stage run counted once; and what fits where, as docs/memory.md has it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from freelunch.__main__ import main
from freelunch.budget import GPUS, HOSTS, TFLOPS, USABLE, as_markdown, budget, hours, summed, warnings
from freelunch.costs import Cost, cost
from freelunch.plan.plan import Plan
from stage_runs import ROOT, tiny_config, tiny_plan


def plan_of(shards: int = 1) -> Plan:
    return tiny_plan(tiny_config() | {"execution": {"shards": shards, "device": "cpu"}})


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of()


def test_what_runs_models_and_stages_take_adds_up_to_what_all_specs_cost(plan: Plan) -> None:
    jobs = budget(plan, "tiny")
    costs = [cost(spec, plan.config) for spec in plan.needed("tiny")]
    for by in ("run", "model", "stage"):
        total = summed(jobs, by)
        assert total["jobs"].sum() == len(costs) and total["done"].sum() == 0
        assert total["operations"].sum() == pytest.approx(sum(each.operations for each in costs))
        assert total["disk"].sum() == pytest.approx(sum(each.disk for each in costs))
        assert total["host"].max() == max(each.host for each in costs)
    assert list(jobs["run"].unique()) == [run.name for run in plan.runs["tiny"]]


def test_shared_stages_count_for_the_first_run_that_needs_them(plan: Plan) -> None:
    def stages(jobs: pd.DataFrame, run: str) -> tuple[set[str], set[str]]:
        of = jobs[jobs["run"] == run]
        return set(of["stage"][~of["shared"]]), set(of["stage"][of["shared"]])

    jobs, (dense, first, *others) = budget(plan, "tiny"), (run.name for run in plan.runs["tiny"])
    assert stages(jobs, dense) == ({"evaluation"}, {"models", "data"})
    assert stages(jobs, first) == ({"pruned", "evaluation"}, {"calibration", "dense"})
    wanda = next(name for name in others if "wanda-50-" in name)
    assert stages(jobs, wanda)[1] == {"pruned"}  # once for all that recover it
    alone = budget(plan, "tiny", wanda)
    assert len(alone) == 6 and not alone["shared"].any()  # it needs everything, and nothing is shared


def test_a_sharded_reconstruction_is_counted_once() -> None:
    whole, split = (budget(plan_of(shards), "tiny") for shards in (1, 4))
    assert split["operations"].sum() == pytest.approx(whole["operations"].sum())
    assert split["disk"].sum() == pytest.approx(whole["disk"].sum())
    assert len(split) > len(whole)


def test_hours_are_operations_over_the_rate() -> None:
    assert hours(TFLOPS * 1e12 * 3600 * 5, TFLOPS) == pytest.approx(5)


def test_what_is_done_is_counted(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = next(iter(plan.stage("dense").values()))
    (tmp_path / spec.folder).mkdir(parents=True)
    (tmp_path / spec.manifest).write_text("{}")
    jobs = budget(plan, "tiny")
    assert list(jobs["stage"][jobs["done"]]) == ["dense"]


def test_more_than_the_machine_has_is_a_warning(tmp_path: Path) -> None:
    def of(disk: float, host: float) -> list[str]:
        return [line.split(",")[0] for line in warnings(pd.DataFrame({"disk": [disk], "host": [host]}), tmp_path)]

    much = f"{2.0**40:,.0f}".split(",")[0]
    assert of(0, 0) == []
    assert of(2.0**70, 0) == [f"the results take {much}"] and of(0, 2.0**70) == [f"the largest job takes {much}"]
    assert len(of(2.0**70, 2.0**70)) == 2


def test_what_does_not_fit_is_named() -> None:
    size, host = GPUS[0] * USABLE * 2**30, HOSTS[0] * USABLE * 2**30
    costs = {"small": {"a": Cost(host=host, device=size)}, "large": {"a": Cost(host=host + 1, device=size + 1)}}
    lines = as_markdown(costs).splitlines()
    assert f"| small | {size / 2**30:.1f} + {host / 2**30:.1f} |" in lines
    assert f"| GPU of {GPUS[0]} GB | all but large |" in lines and f"| GPU of {GPUS[1]} GB | all |" in lines
    assert f"| host of {HOSTS[0]} GB | all but large |" in lines and f"| host of {HOSTS[1]} GB | all |" in lines


def test_the_page_on_memory_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("python -m freelunch memory "))
    assert main(["--config", str(ROOT / "config.yaml"), *line.split()[3:]]) == 0
    assert capsys.readouterr().out.strip() in page
