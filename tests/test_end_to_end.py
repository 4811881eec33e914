"""The tiny suite through Snakemake, from nothing to figures: interrupted, resumed, repeated, extended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmarks import kills
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.yaml_files import read_yaml
from pages import Checked

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a copy of the repository and return what it said."""
    command = [sys.executable, "-m", "snakemake", "--configfile", "tests/tiny.yaml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def jobs(folder: Path, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run would start."""
    result = snakemake(folder, "--dry-run", *arguments, "--", "tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    text = result.stdout + result.stderr
    if "Nothing to be done" in text:
        return {}
    lines = text.split("Job stats:")[1].split("total")[0].splitlines()
    rows = [line.split() for line in lines if line.strip()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def of(folder: Path) -> dict[str, str]:
    """The environment, with the package of a copy of the repository."""
    return os.environ | {"PYTHONPATH": str(folder / "workflow")}


def contents(folder: Path) -> dict[str, str]:
    """Hashes of everything the pipeline computed: tensors, tokens, metrics; what holds times is left out."""
    found = {}
    stages = ("calibration", "dense", "grams", "pruned", "reconstructed", "retrained", "repaired", "evaluation")
    for stage in stages:
        for path in sorted((folder / "results" / stage).rglob("*")):
            timed = path.name == "manifest.json" or path.match("window-*.json")
            if path.is_file() and not timed:
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def copy_repository(target: Path) -> Path:
    named = shutil.ignore_patterns(".*", "__pycache__", "_build", "*.egg-info")

    def skip(folder: str, names: list[str]) -> set[str]:
        # the package has a room of that name
        return named(folder, names) | ({"results"} if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, target, ignore=skip)
    return target


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """What is finished, for a test to change."""
    folder = tmp_path / "repository"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = copy_repository(tmp_path_factory.mktemp("uninterrupted") / "repository")
    result = snakemake(folder, "--", "tiny")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    yield folder


def test_every_run_has_its_rows_and_the_sparsity_it_should(finished: Path) -> None:
    rows = pd.read_csv(finished / "results/tiny/rows.csv")
    assert rows["run"].nunique() == 15  # dense, 6 pruned, 6 reconstructed, 1 retrained, 1 repaired
    test = rows[(rows["metric"] == "ppl@64") & (rows["split"] == "test")].set_index("run")
    assert len(test) == 15
    assert test["recovery"].value_counts().to_dict() == {"none": 7, "reconstruct": 6, "retrain": 1, "repair": 1}
    halved = ~test["criterion"].isin(["dense", "flap"])  # whole heads and channels do not add up to a round number
    assert (test.loc[halved, "achieved_sparsity"] == 0.5).all()
    assert 0.1 < test.loc[test["criterion"] == "flap", "achieved_sparsity"].item() < 0.3
    pd.testing.assert_frame_equal(pd.read_parquet(finished / "results/tiny/rows.parquet")[["value"]], rows[["value"]])
    losses = rows[rows["metric"] == "validation_loss"].groupby(["run", "position"])["value"]
    best = rows[rows["metric"] == "best_validation_loss"].set_index(["run", "position"])["value"]
    assert (best <= losses.first()).all()
    assert (best < losses.first()).mean() > 0.8  # most windows of a random model can be repaired a little
    chosen = rows[rows["metric"] == "chosen_learning_rate"]
    assert (chosen["flow"] == "sparse_local").all() and list(chosen["position"]) == ["0", "1", "2", "3"]
    for view in ("tables/perplexity.tex", "tables/cost.md", "figures/gain.pdf", "figures/perplexity.png"):
        assert (finished / "results/tiny" / view).stat().st_size > 0


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    assert jobs(finished) == {}


def test_a_structured_run_is_exported_as_a_model_that_loads(copied: Path) -> None:
    from transformers import AutoModelForCausalLM

    command = [sys.executable, "-m", "freelunch", "--config", "tests/tiny.yaml", "plan", "--exports"]
    environment = os.environ | {"PYTHONPATH": "workflow"}
    listed = subprocess.run(command, cwd=copied, capture_output=True, text=True, check=True, env=environment)
    target = next(line for line in listed.stdout.splitlines() if "-flap-" in line)
    result = snakemake(copied, "--", target)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    manifest = json.loads((copied / target).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained((copied / target).parent)
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]
    assert manifest["smaller"] or manifest["reason"]


def test_a_zero_shot_task_asks_what_a_stage_made(copied: Path) -> None:
    result = snakemake(copied, "--", "tiny_zero_shot")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    rows = pd.read_csv(copied / "results/tiny_zero_shot/rows.csv", keep_default_na=False)
    scores = rows[rows["dataset"] == "article_last_word"].groupby("metric")["value"]
    assert scores.size().to_dict() == {"acc": 2, "chance": 2} and scores.min()["acc"] >= 0
    assert (rows["metric"] == "acc_mean").sum() == 2
    with (copied / "workflow/tasks/article_last_word.yaml").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    edited = snakemake(copied, "--dry-run", "--", "tiny_zero_shot", "tiny")
    lines = (edited.stdout + edited.stderr).split("Job stats:")[1].split("total")[0].splitlines()
    counts = dict(line.split() for line in lines if line.strip() and line.split()[-1].isdigit())
    assert counts["evaluation"] == "2" and not {"questions", "pruned", "dense"} & counts.keys(), counts


def test_the_report_is_made_with_the_suite_and_is_the_same_bytes_again(finished: Path) -> None:
    target = finished / "results/tiny/report.html"
    first = target.read_text(encoding="utf-8")
    page = Checked(first)
    assert page.tags["img"] == 3
    assert "transition" in page.text.split("Not testable here:")[1].split(".")[0]
    assert "snakemake --cores all --configfile tests/tiny.yaml -- results/tiny/figures/gain.pdf" in page.text
    target.unlink()
    assert jobs(finished) == {"report": 1, "tiny": 1}
    assert snakemake(finished, "--", "tiny").returncode == 0
    assert target.read_text(encoding="utf-8") == first


def test_a_deleted_dense_cache_is_not_made_again_for_the_report(finished: Path) -> None:
    (folder,) = (finished / "results/dense").iterdir()
    folder.rename(finished / "dense-put-aside")
    (finished / "results/tiny/report.html").unlink()
    try:
        assert jobs(finished) == {"report": 1, "tiny": 1}
    finally:
        (finished / "dense-put-aside").rename(folder)
        assert snakemake(finished, "--", "tiny").returncode == 0


def test_adding_a_sparsity_adds_only_its_jobs(finished: Path) -> None:
    path = finished / "tests/tiny.yaml"
    original = path.read_text(encoding="utf-8")
    config = yaml.safe_load(original)
    config["suites"]["tiny"]["runs"][1]["pattern"] = ["50%", "60%"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        assert jobs(finished) == {
            "pruned": 1, "reconstructed": 3, "evaluation": 3, "collect": 1, "table": 2, "figure": 3, "report": 1,
            "tiny": 1,
        }  # fmt: skip
    finally:
        path.write_text(original, encoding="utf-8")


def test_editing_a_module_reruns_what_uses_it_and_nothing_else(finished: Path) -> None:
    def after_editing(module: str) -> dict[str, int]:
        path = finished / "workflow/freelunch" / module
        original = path.read_bytes()
        path.write_bytes(original + b"\nEDITED = True\n")
        try:
            return jobs(finished)
        finally:
            path.write_bytes(original)

    assert after_editing("report/figures.py") == {"tiny": 1, "table": 2, "figure": 3, "report": 1}
    wanda = after_editing("pruning/criteria/wanda.py")
    assert wanda["pruned"] == 2 and wanda["reconstructed"] == 5 and wanda["retrained"] == wanda["repaired"] == 1
    assert "dense" not in wanda and "calibration" not in wanda
    sparsegpt = after_editing("pruning/criteria/sparsegpt.py")
    assert sparsegpt["pruned"] == 1 and sparsegpt["reconstructed"] == 1 and "grams" not in sparsegpt
    allocations = after_editing("pruning/allocations.py")  # all are in one module
    assert "pruned" in allocations and "dense" not in allocations
    refinements = after_editing("pruning/refinements.py")
    assert refinements["pruned"] == 2  # those with exact and with bias
    recoveries = {"reconstructed", "retrained", "repaired"}
    parametrizations = after_editing("recover/parametrizations.py")
    assert {"reconstructed", "retrained"} <= parametrizations.keys() and not {
        "pruned",
        "repaired",
    } & parametrizations.keys()
    for module, rule in {"recover/retrain.py": "retrained", "recover/repair.py": "repaired"}.items():
        edited = after_editing(module)
        assert edited[rule] == edited["evaluation"] == 1 and recoveries & edited.keys() == {rule}
    perplexity = after_editing("evaluate/perplexity.py")
    assert perplexity["evaluation"] == 15 and not (recoveries | {"pruned", "dense"}) & perplexity.keys()


def test_execution_settings_rerun_nothing(finished: Path) -> None:
    assert jobs(finished, "--config", "execution={stream_tokens: 512, checkpointing: false}") == {}


def test_killed_while_reconstructing_it_goes_on_and_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "repository")
    target = next((finished / "results/reconstructed").glob("*-attention_mlp-????????")).relative_to(finished)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--configfile",
        "tests/tiny.yaml",
        "--",
        str(target / "manifest.json"),
    ]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 600
    records = folder / target
    while len(list(records.glob("window-*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "finished or stuck before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = sorted(path.name for path in records.glob("window-*.json"))
    assert len(before) < 8, "all windows were done when the job was killed"
    assert not (records / "manifest.json").exists()

    assert snakemake(folder, "--unlock").returncode == 0
    result = snakemake(folder, "--", "tiny")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    manifest = json.loads((records / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["resumed_windows"] >= 3
    assert contents(folder) == contents(finished)


@pytest.mark.parametrize(
    "arguments", [["--one-process", "--count", "3", "--each", "3"], ["--count", "2", "--each", "2"]]
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert kills.main([*arguments, "--suite", "small", "--seed", "3"]) == 0, capsys.readouterr().err
    assert "kills, and no bit is different" in capsys.readouterr().out


def test_two_pipelines_at_once_do_not_touch_each_others_files(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "repository")
    (model,) = make_plan(parse_config(read_yaml(ROOT / "tests/tiny.yaml"))).stage("models").values()
    command = [sys.executable, "-m", "snakemake", "--configfile", "tests/tiny.yaml", "--", model.manifest]
    first = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((folder / ".snakemake").glob("locks/*")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it must not be done before the others have started
    second = snakemake(folder, "--", model.manifest)
    assert second.returncode and "Directory cannot be locked" in second.stdout + second.stderr
    runner = [sys.executable, "-m", "freelunch", "--config", "tests/tiny.yaml", "run", model.name]
    third = subprocess.run(runner, cwd=folder, env=of(folder), capture_output=True, text=True, check=False)
    assert third.returncode == 1 and "Snakemake is at work here, or was killed" in third.stderr
    assert len(third.stderr.splitlines()) == 1
    first.send_signal(signal.SIGCONT)
    assert first.wait(600) == 0 and (folder / model.manifest).is_file()


def test_a_job_that_outlives_its_snakemake_keeps_its_result_to_itself(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "repository")
    (spec,) = make_plan(parse_config(read_yaml(ROOT / "tests/tiny.yaml"))).stage("models").values()
    job = f"""
import time
from pathlib import Path
from freelunch.results.stage import occupy
from freelunch.plan.spec import parse_spec
occupy(Path(), parse_spec({spec.model_dump()!r}))
print("held", flush=True)
time.sleep(600)
"""
    left = subprocess.Popen([sys.executable, "-c", job], cwd=folder, env=of(folder), stdout=subprocess.PIPE, text=True)
    assert left.stdout is not None and left.stdout.readline() == "held\n"
    result = snakemake(folder, "--", spec.manifest)
    assert result.returncode
    assert "another process is making this result; wait until it is done" in result.stdout + result.stderr
    left.kill()
    left.wait()
    assert snakemake(folder, "--", spec.manifest).returncode == 0


def test_damaged_results_are_named_before_they_are_used(copied: Path) -> None:
    victim = next((copied / "results/reconstructed").glob("*-block-????????")) / "window-002.safetensors"
    victim.write_bytes(victim.read_bytes()[:-64])
    label = victim.parent.name.rsplit("-", 1)[0]
    evaluation = next((copied / "results/evaluation").glob(f"{label}-????????/manifest.json"))
    evaluation.unlink()
    result = snakemake(copied, "--", str(evaluation.relative_to(copied)))
    text = result.stdout + result.stderr
    assert result.returncode != 0
    assert f"error: {copied / victim.relative_to(copied)}: has " in text
    assert "Traceback" not in text
    assert not evaluation.exists()


def test_a_key_that_is_there_twice_stops_before_any_job_with_one_line(finished: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("execution: {device: cpu}\nexecution: {device: auto}\n")
    result = snakemake(finished, str(twice), "--dry-run", "--", "tiny")
    assert result.returncode and f"{twice}: line 2: the key 'execution' is there twice" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_bad_config_stops_before_any_job_with_one_line(finished: Path) -> None:
    result = snakemake(finished, "--dry-run", "--config", "exection={device: cpu}", "--", "tiny")
    assert result.returncode != 0
    assert "exection: unknown key; did you mean 'execution'?" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_classifiers_go_from_images_to_a_report_and_are_not_made_twice(copied: Path) -> None:
    result = snakemake(copied, "--", "tiny_vision")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    rows = pd.read_csv(copied / "results/tiny_vision/rows.csv")
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")]
    assert len(accuracy) == 2 * (1 + 4 * 8)
    report = Checked((copied / "results/tiny_vision/report.html").read_text(encoding="utf-8"))
    assert "Recalibrated (epsilon 1e-12)" in report.text
    for view in ("accuracy", "allocation", "density", "transition"):
        assert (copied / f"results/tiny_vision/figures/{view}.pdf").stat().st_size > 0
    assert "Nothing to be done" in snakemake(copied, "--dry-run", "--", "tiny_vision").stdout
