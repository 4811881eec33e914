"""What a plan says that its runs take: every stage counts once, and hours follow from operations."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freelunch.__main__ import main
from freelunch.budget import TFLOPS, Budget, Need, budget, warnings
from freelunch.costs import cost
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.yaml_files import read_yaml

TINY = Path(__file__).parent / "tiny.yaml"
Show = Callable[..., str]


def plan_of(shards: int = 1) -> Plan:
    raw = read_yaml(TINY)
    return make_plan(parse_config(raw | {"execution": {"shards": shards, "device": "cpu"}}))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of()


def test_needs_of_runs_of_models_and_of_stages_add_up_to_what_all_specs_cost(plan: Plan) -> None:
    found = budget(plan, "tiny")
    costs = [cost(plan.config, spec) for spec in plan.needed("tiny")]
    whole = sum((each.own + each.shared for each in found.runs), Need())
    models = sum((need for _, need in found.models.values()), Need())
    for total in (whole, models, found.total):
        assert total.jobs == len(costs) and total.done == 0
        assert total.operations == pytest.approx(sum(each.operations for each in costs))
        assert total.disk == pytest.approx(sum(each.disk for each in costs))
        assert total.memory == max(each.memory for each in costs)
    assert {name: count for name, (count, _) in found.models.items()} == {"tiny": len(plan.runs["tiny"])}


def test_shared_stages_count_for_the_first_run_that_needs_them(plan: Plan) -> None:
    runs = budget(plan, "tiny").runs
    dense, first = runs[0], runs[1]
    assert dense.run.axes is None
    assert dense.shared.jobs == 2  # model and documents; its evaluation is its own
    assert dense.own.jobs == 1
    assert (first.own.jobs, first.shared.jobs) == (2, 2)  # pruned and evaluated; crops and dense states
    wanda = next(each for each in runs if "wanda-50-" in each.run.name)
    assert wanda.shared.jobs == 1  # pruned once for all that recover it
    alike = budget(plan, "tiny", wanda.run.name)
    assert alike.total.jobs == 6  # alone it needs everything, and nothing is shared
    assert (alike.runs[0].own.jobs, alike.runs[0].shared.jobs) == (6, 0)


def test_a_sharded_reconstruction_is_counted_once() -> None:
    whole, split = (budget(plan_of(shards), "tiny") for shards in (1, 4))
    assert split.total.operations == pytest.approx(whole.total.operations)
    assert split.total.disk == pytest.approx(whole.total.disk)
    assert split.total.jobs > whole.total.jobs


def test_hours_are_operations_over_the_rate() -> None:
    assert Need(operations=3600 * 2e12).hours(2) == pytest.approx(1)
    assert Need(operations=TFLOPS * 1e12 * 3600 * 5).hours(TFLOPS) == pytest.approx(5)


def test_what_is_done_is_counted(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = next(iter(plan.stage("dense").values()))
    (tmp_path / spec.folder).mkdir(parents=True)
    (tmp_path / spec.manifest).write_text("{}")
    found = budget(plan, "tiny")
    assert (found.stages["dense"].done, found.total.done) == (1, 1)


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need(), []),
        (Need(disk=2.0**70), ["of disk"]),
        (Need(memory=2.0**70), ["of memory"]),
        (Need(disk=2.0**70, memory=2.0**70), ["of disk", "of memory"]),
    ],
)
def test_more_than_the_machine_has_is_a_warning(need: Need, words: list[str], tmp_path: Path) -> None:
    found = warnings(need, tmp_path)
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


def numbers(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_csv_adds_up_and_follows_the_rate(plan: Plan, show: Show) -> None:
    found: Budget = budget(plan, "tiny")
    rows, slow = numbers(show("--csv")), numbers(show("--csv", "--tflops", "1"))
    assert [row["run"] for row in rows] == [each.run.name for each in found.runs]
    operations = sum(float(row["operations"]) + float(row["shared_operations"]) for row in rows)
    assert operations == pytest.approx(found.total.operations)
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
