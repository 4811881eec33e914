"""What a plan says that its runs take, every stage run counted once; and what fits where, as docs/memory.md has it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from freelunch.__main__ import main
from freelunch.budget import GPUS, HOSTS, TFLOPS, USABLE, as_markdown, budget, hours, peaks, summed, warnings
from freelunch.costs import Cost, cost
from freelunch.errors import FreelunchError
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
Show = Callable[..., str]


def plan_of(shards: int = 1) -> Plan:
    raw = read_yaml(TINY)
    return make_plan(parse_config(raw | {"execution": {"shards": shards, "device": "cpu"}}))


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
    assert hours(3600 * 2e12, 2) == pytest.approx(1)
    assert hours(TFLOPS * 1e12 * 3600 * 5, TFLOPS) == pytest.approx(5)


def test_what_is_done_is_counted(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = next(iter(plan.stage("dense").values()))
    (tmp_path / spec.folder).mkdir(parents=True)
    (tmp_path / spec.manifest).write_text("{}")
    jobs = budget(plan, "tiny")
    assert list(jobs["stage"][jobs["done"]]) == ["dense"]


@pytest.mark.parametrize(
    ("disk", "host", "words"),
    [
        (0.0, 0.0, []),
        (2.0**70, 0.0, ["of disk"]),
        (0.0, 2.0**70, ["of memory"]),
        (2.0**70, 2.0**70, ["disk", "memory"]),
    ],
)
def test_more_than_the_machine_has_is_a_warning(disk: float, host: float, words: list[str], tmp_path: Path) -> None:
    found = warnings(pd.DataFrame({"disk": [disk], "host": [host]}), tmp_path)
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True))


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> str:
        assert main(["--config", str(TINY), "plan", *options]) == 0
        return capsys.readouterr().out

    return run


def test_runs_are_listed_on_demand(plan: Plan, show: Show) -> None:
    names = [run.name for run in plan.runs["tiny"]]
    short, long = show(), show("--runs")
    assert not [name for name in names if name in short]
    assert [line.split()[0] for line in long.splitlines() if line.endswith("to do")] == names
    assert "15 runs" in short and "396 TFLOP/s" in short


def test_the_csv_adds_up_and_follows_the_rate(plan: Plan, show: Show) -> None:
    def numbers(text: str) -> list[dict[str, Any]]:
        return list(csv.DictReader(text.splitlines()))

    rows, slow = numbers(show("--csv")), numbers(show("--csv", "--tflops", "1"))
    assert [row["run"] for row in rows] == [run.name for run in plan.runs["tiny"]]
    operations = sum(float(row["operations"]) + float(row["shared_operations"]) for row in rows)
    assert operations == pytest.approx(budget(plan, "tiny")["operations"].sum())
    for row, other in zip(rows, slow, strict=True):
        assert float(other["gpu_hours"]) == pytest.approx(float(row["gpu_hours"]) * TFLOPS)
        assert float(other["gpu_hours"]) == pytest.approx(float(row["operations"]) / 1e12 / 3600)


def test_targets_and_exports_are_those_of_the_runs_that_match(plan: Plan, show: Show) -> None:
    names = [run.name for run in plan.runs["tiny"] if "magnitude" in run.name]
    assert show("--targets", "--match", "*magnitude*").split() == [
        f"results/evaluation/{name}/manifest.json" for name in names
    ]
    exports = show("--exports").split()
    assert len(exports) == len(plan.runs["tiny"]) - 1 and set(exports) <= plan.specs.keys()


def test_a_pattern_that_matches_nothing_and_a_rate_that_is_none(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(TINY), "plan", "--match", "nothing"]) == 1
    assert capsys.readouterr().err == "no run of suite tiny matches 'nothing'; --runs lists them\n"
    with pytest.raises(SystemExit):
        main(["--config", str(TINY), "plan", "--tflops", "0"])


# --- what fits -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named() -> None:
    size, host = GPUS[0] * USABLE * 2**30, HOSTS[0] * USABLE * 2**30
    costs = {"small": {"a": Cost(host=host, device=size)}, "large": {"a": Cost(host=host + 1, device=size + 1)}}
    lines = as_markdown(costs).splitlines()
    assert f"| small | {size / 2**30:.1f} + {host / 2**30:.1f} |" in lines
    assert f"| GPU of {GPUS[0]} GB | all but large |" in lines and f"| GPU of {GPUS[1]} GB | all |" in lines
    assert f"| host of {HOSTS[0]} GB | all but large |" in lines and f"| host of {HOSTS[1]} GB | all |" in lines


def test_models_and_suites_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_config(read_yaml(ROOT / "config.yaml"))
    with pytest.raises(FreelunchError, match=r"^model: .*llama-3.1-8b"):
        peaks(config, "paper", ["llama-3.1-8"])
    assert main(["--config", str(ROOT / "config.yaml"), "memory", "papr"]) == 1
    assert "there is no suite 'papr'" in capsys.readouterr().err


def test_the_page_on_memory_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("python -m freelunch memory "))
    assert main(["--config", str(ROOT / "config.yaml"), *line.split()[3:]]) == 0
    assert capsys.readouterr().out.strip() in page
