"""Classifiers in the pipeline: config, plan, stages, rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from freelunch.costs import cost
from freelunch.engine.overlays import unpack
from freelunch.errors import FreelunchError
from freelunch.plan.config import ExecutionConfig, parse_config
from freelunch.plan.plan import Plan, make_plan, resolved
from freelunch.plan.spec import Spec, parse_spec
from freelunch.plan.yaml_files import read_yaml
from freelunch.report.rows import read_rows
from freelunch.results.artifacts import Artifact
from freelunch.runner import Runner
from freelunch.stages import code_of
from freelunch.stages.classifiers import random_network
from freelunch.stages.collect import collect
from freelunch.stages.sparse_classifiers import drawn
from freelunch.vision.images import Images, folder_images, unpacked
from freelunch.vision.layers import layers_of, prune
from freelunch.vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from freelunch.vision.sections import BACKENDS

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "tests/data/images"
SUITE = "tiny_vision"
EPSILON = 1e-3
Kind = TypeVar("Kind", bound=Spec)


def config_of(**changes: Any) -> dict[str, Any]:
    """The tiny config with the suite of classifiers alone; changes are of its defaults, or ``section__key``."""
    raw: dict[str, Any] = read_yaml(ROOT / "tests/tiny.yaml")
    raw["images"]["stripes"]["path"] = str(PICTURES)
    raw["suites"], raw["default_suite"] = {SUITE: raw["suites"][SUITE]}, SUITE
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        target = raw["suites"][SUITE]["defaults"] if not section else next(iter(raw[section].values()))
        target[key] = value
    return raw


def plan_of(**changes: Any) -> Plan:
    return make_plan(parse_config(config_of(**changes)))


def first(plan: Plan, kind: type[Kind]) -> Kind:
    return next(spec for spec in plan.specs.values() if isinstance(spec, kind))


def run(root: Path, plan: Plan, kind: type[Spec]) -> Artifact:
    """The result of the first spec of a kind."""
    return Runner(root, ExecutionConfig(device="cpu"), 1.0).need(first(plan, kind))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """One dense and two pruned classifiers, whose norms have an epsilon of their own."""
    raw = config_of(seed=0, classifiers__epsilon=EPSILON)
    raw["suites"][SUITE]["runs"] = [{"pattern": "80% per matrix", "allocation": ["erk", "lamp"]}]
    root, plan = tmp_path_factory.mktemp("classifiers"), make_plan(parse_config(raw))
    for each in plan.runs[SUITE]:
        Runner(root, ExecutionConfig(device="cpu"), 1.0).need(each.evaluation)
    return root, plan


# --- config and plan -------------------------------------------------------------------------------------------------


def test_every_trained_classifier_has_a_dense_run_and_its_pruned_ones():
    plan = plan_of()
    runs = plan.runs[SUITE]
    assert [type(run.evaluation) for run in runs] == 2 * [ClassifierSpec, *4 * [SparseClassifierSpec]]
    assert [run.axes is None for run in runs] == 2 * [True, *4 * [False]]
    assert {run.model for run in runs} == {"tiny-stripes"} and plan.exports(SUITE) == []
    stages = Counter(spec.stage for spec in plan.needed(SUITE))
    assert stages == {"images": 1, "classifiers": 2, "sparse_classifiers": 8}
    for spec in plan.needed(SUITE):
        assert parse_spec(spec.model_dump(mode="json")) == spec
        taken = cost(spec, plan.config)
        assert taken.disk > 0 and taken.host > 0 and (taken.operations > 0) == (spec.stage != "images")
    assert len({*{spec.stage: code_of(spec) for spec in plan.needed(SUITE)}.values()}) == 3


def test_what_does_not_change_a_result_is_no_part_of_its_key():
    keys = {spec.key for spec in plan_of().needed(SUITE)}
    for same in ({"images__licence": "mine"}, {"backends": list(reversed(BACKENDS))}):
        assert {spec.key for spec in plan_of(**same).needed(SUITE)} == keys
    assert keys.isdisjoint({spec.key for spec in plan_of(images__size=9).needed(SUITE)})
    fewer = {spec.key for spec in plan_of(backends=["none", "recalibrate"]).needed(SUITE)}
    assert len(keys & fewer) == 3  # the images and both dense classifiers


WHEEL = {"package": "p", "version": "1", "sha256": "0" * 64, "member": "m"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": "tinny"}, r"suites.tiny_vision.runs\[0\].classifier: there is no 'tinny'; did you mean 'tiny'"),
        ({"images": "strips"}, "images: there is no 'strips'; did you mean 'stripes'"),
        ({"backends": ["chanel"]}, "'chanel' is not possible; did you mean 'channel'"),
        ({"backends": []}, "the list is empty"),
        ({"criterion": "wanda"}, "criterion: 'wanda' is not possible"),
        ({"window": "block"}, "defaults.window: unknown key"),
        ({"classifiers__architecture": "resnet19"}, "there is no network 'resnet19'; did you mean 'resnet18'"),
        ({"images__splits": {"train": "train"}}, "splits are train and test"),
        ({"images__splits": {"train": 3, "test": 3}}, "splits of a path source are names"),
        ({"images__hub": {"id": "a/b", "revision": "0" * 40}}, "exactly one of wheel, hub, path; found hub, path"),
        ({"images__classes": 1}, "classes"),
        ({"images__path": None, "images__wheel": WHEEL, "images__splits": {"train": 10, "test": 5}},
         "calibration_images is 16, and images.stripes has 10 to train on"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_key(changes, message):
    with pytest.raises(FreelunchError, match=message):
        plan_of(**changes)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"pattern": "20% structured"}, "classifiers have none"),
        ({"pattern": "90% global", "allocation": "erk"}, "leaves allocation erk nothing to do"),
        ({"pattern": "2:4"}, "are not a multiple of 4"),
    ],
)
def test_methods_that_do_not_fit_a_classifier_are_refused(axes, message):
    raw = config_of()
    raw["suites"][SUITE]["runs"] = [axes]
    with pytest.raises(FreelunchError, match=message):
        make_plan(parse_config(raw))


def test_language_models_and_classifiers_share_a_suite():
    raw: dict[str, Any] = read_yaml(ROOT / "tests/tiny.yaml")
    raw["suites"]["tiny"]["include"] = [SUITE]
    plan = make_plan(parse_config(raw))
    assert len(plan.runs["tiny"]) == 15 + 10
    about = yaml.safe_load(resolved(plan, "tiny"))
    assert set(about["images"]) == {"stripes"} and set(about["classifiers"]) == {"tiny"}
    assert about["runs"][plan.runs["tiny"][-1].name]["allocation"] == "lamp"
    stages = Counter(spec.stage for spec in plan.needed("tiny"))
    assert stages["classifiers"] == 2 and stages["sparse_classifiers"] == 8 and stages["images"] == 1
    del raw["suites"]["tiny"]["evaluate"]
    with pytest.raises(FreelunchError, match=r"suites.tiny.evaluate: this key is missing"):
        make_plan(parse_config(raw))


# --- images ----------------------------------------------------------------------------------------------------------


def test_images_of_folders_are_read_in_turn_and_stored_as_bytes(finished: tuple[Path, Plan]):
    artifact = run(*finished, ImagesSpec)
    assert artifact.manifest["splits"] == {"train": 24, "test": 12}
    train = load_file(artifact.file("train.safetensors"))
    assert train["pixels"].shape == (24, 3, 8, 8) and train["pixels"].dtype == torch.uint8
    assert train["labels"].tolist() == 12 * [0, 1]
    few = folder_images(PICTURES / "train", 4, most=5)
    assert few.pixels.shape == (5, 3, 4, 4) and few.labels.tolist() == [0, 1, 0, 1, 0]


def test_broken_and_missing_images_are_named(tmp_path: Path):
    with pytest.raises(FreelunchError, match="nowhere does not exist"):
        folder_images(tmp_path / "nowhere", 8)
    with pytest.raises(FreelunchError, match="has no folders with images"):
        folder_images(tmp_path, 8)
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.png").write_bytes(b"no image")
    with pytest.raises(FreelunchError, match=r"class/a.png: cannot be read as an image"):
        folder_images(tmp_path, 8)


def test_images_that_are_not_what_the_config_says_are_refused(tmp_path: Path):
    for folder in [tmp_path / split / name for split in ("train", "test") for name in "abc"]:
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes((PICTURES / "test/vertical/00.png").read_bytes())
    with pytest.raises(FreelunchError, match=r"images.stripes: classes is 2, and train has the label 2"):
        run(tmp_path, plan_of(images__path=str(tmp_path)), ImagesSpec)
    assert not list(tmp_path.glob("results/images/*/train.safetensors"))


def test_hub_images_are_read_from_local_files_of_the_same_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures = [Image.new("RGB", (12, 10), (20 * k, 0, 0)) for k in range(6)]
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"img": pictures, "fine_label": [0, 1] * 3}, features=features)
    folder = tmp_path / "repository"
    for split in ("train", "test"):
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda id_, subset, split, revision: real(str(folder), split=split))
    raw = config_of(seed=0)
    raw["images"]["stripes"] = {
        "hub": {"id": "owner/name", "revision": "0" * 40}, "splits": {"train": "train", "test": "test"}, "size": 8,
        "classes": 2, "image": "img", "label": "fine_label", "max_images": 4,
    }  # fmt: skip
    train = load_file(run(tmp_path, make_plan(parse_config(raw)), ImagesSpec).file("train.safetensors"))
    assert train["pixels"].shape == (4, 3, 8, 8) and train["pixels"][:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert train["labels"].tolist() == [0, 1, 0, 1]


def test_calibration_images_are_drawn_by_seed():
    images = Images(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    one, same, other = (drawn(images, 4, seed).flatten().tolist() for seed in (0, 0, 1))
    assert one == same != other and len(set(one)) == 4
    with pytest.raises(FreelunchError, match="calibration_images is 11, and there are 10 images to train on"):
        drawn(images, 11, 0)


# --- classifiers -----------------------------------------------------------------------------------------------------


def test_classifiers_are_trained_and_their_accuracy_is_in_the_manifest(finished: tuple[Path, Plan]):
    manifest, spec = run(*finished, ClassifierSpec).manifest, first(finished[1], ClassifierSpec)
    assert manifest["accuracy"]["test"] > 0.7 and manifest["losses"][-1] < manifest["losses"][0]
    assert manifest["images"] == {"train": 24, "test": 12} and len(manifest["losses"]) == 4
    assert manifest["parameters"] == sum(each.numel() for each in random_network(spec).parameters())


def test_a_classifier_comes_out_the_same_again(finished: tuple[Path, Plan], tmp_path: Path):
    again = run(tmp_path, finished[1], SparseClassifierSpec)
    assert (
        again.file("metrics.json").read_bytes()
        == run(*finished, SparseClassifierSpec).file("metrics.json").read_bytes()
    )


def test_masks_and_metrics_of_a_pruned_classifier(finished: tuple[Path, Plan]):
    root, plan = finished
    spec = plan.runs[SUITE][2].evaluation
    assert isinstance(spec, SparseClassifierSpec) and spec.pattern == "80% per matrix" and spec.allocation == "lamp"
    artifact = Artifact(root / spec.folder, spec)
    layers = layers_of(random_network(spec.dense))
    masks = load_file(artifact.file("masks.safetensors"))
    assert set(masks) == set(layers)
    kept = {name: unpack(mask, layers[name].weight[0].numel()) for name, mask in masks.items()}
    size = sum(mask.numel() for mask in kept.values())
    assert size - sum(int(mask.sum()) for mask in kept.values()) == int(0.8 * size + 0.5)
    assert artifact.manifest["achieved_sparsity"] == pytest.approx(0.8, abs=1 / size)
    records = json.loads(artifact.file("metrics.json").read_text())
    accuracies = {record["backend"]: record for record in records if record["metric"] == "accuracy"}
    assert tuple(accuracies) == BACKENDS
    for record in accuracies.values():
        assert record["stderr"] == pytest.approx((record["value"] * (1 - record["value"]) / 12) ** 0.5)
    density = [record for record in records if record["metric"] == "layer_density"]
    shares = {name: float(mask.double().mean()) for name, mask in kept.items()}
    assert {record["position"]: record["value"] for record in density} == pytest.approx(shares)
    assert [record["step"] for record in density] == [*range(1, len(layers) + 1)]
    epsilons = {record["backend"]: record["value"] for record in records if record["metric"] == "epsilon"}
    assert epsilons == {name: 1e-12 if name == "recalibrate_epsilon" else EPSILON for name in BACKENDS[1:]}


def test_variances_of_norms_are_those_after_recalibration(finished: tuple[Path, Plan]):
    root, spec = finished[0], first(finished[1], SparseClassifierSpec)
    records = json.loads(run(*finished, SparseClassifierSpec).file("metrics.json").read_text())
    at = [r for r in records if r["backend"] == "recalibrate" and r.get("position") == "norm"]
    values = {record["metric"]: record["value"] for record in at}
    train = unpacked(**load_file(root / spec.dense.images.folder / "train.safetensors"))
    pixels = drawn(train.normalised(train), 16, 0)
    network = random_network(spec.dense)
    network.load_state_dict(load_file(root / spec.dense.folder / "network.safetensors"))
    network, _ = prune(network, spec.method, pixels)
    variance = network.stem(pixels).detach().double().var((0, 2, 3), correction=0)
    assert values["least_variance"] == pytest.approx(float(variance[variance > 0].min()), rel=1e-4)
    assert values["median_variance"] == pytest.approx(float(variance[variance > 0].median()), rel=1e-4)
    assert values["silent_channels"] == float((variance == 0).double().mean())


def test_every_backend_is_a_run_with_its_protocol(finished: tuple[Path, Plan], tmp_path: Path):
    root, plan = finished
    collect(SUITE, [run.evaluation for run in plan.runs[SUITE]], root, tmp_path)
    rows = read_rows(tmp_path / "rows.parquet")
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")]
    assert len(accuracy) == 1 + 2 * len(BACKENDS) == rows["run"].nunique()
    dense, pruned = (accuracy[(accuracy["criterion"] == "dense") == is_dense] for is_dense in (True, False))
    assert dense["model"].tolist() == ["tiny-stripes"] and dense["backend"].isna().all()
    assert set(pruned["calibration_images"]) == {16} and set(pruned["dataset"]) == {"stripes"}
    recoveries = dict(zip(pruned["backend"], pruned["recovery"], strict=True))
    assert recoveries["none"] == "none" and recoveries["reconstruct"] == "reconstruct"
    assert recoveries["shrink"] == "repair" and recoveries["recalibrate_epsilon"] == "recalibrate"
    assert rows[rows["metric"] == "least_variance"]["backend"].notna().all()
