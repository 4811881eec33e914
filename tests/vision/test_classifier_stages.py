"""Classifiers in the pipeline: config, plan, stages, rows."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from freelunch.costs import cost
from freelunch.engine.overlays import unpack
from freelunch.errors import FreelunchError
from freelunch.plan.config import ExecutionConfig, parse_config
from freelunch.plan.plan import Plan, make_plan, resolved
from freelunch.plan.spec import parse_spec
from freelunch.plan.yaml_files import read_yaml
from freelunch.report.rows import to_frame
from freelunch.results.artifacts import Artifact
from freelunch.runner import Runner
from freelunch.stages import code_of
from freelunch.stages.classifiers import random_network
from freelunch.stages.collect import collect
from freelunch.stages.sparse_classifiers import drawn
from freelunch.vision.architectures import ARCHITECTURES, convolutions
from freelunch.vision.images import Images, dataset_images, folder_images, unpacked
from freelunch.vision.layers import layers_of, prune
from freelunch.vision.networks import build
from freelunch.vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from freelunch.vision.sections import BACKENDS, ClassifierConfig

ROOT = Path(__file__).parents[2]
SUITE = "tiny_vision"


def config_of(**changes: Any) -> dict[str, Any]:
    """The tiny config with the suite of classifiers alone; changes are of its defaults, or ``section__key``."""
    raw: dict[str, Any] = read_yaml(ROOT / "tests/tiny.yaml")
    raw["images"]["stripes"]["path"] = str(ROOT / "tests/data/images")
    raw["suites"], raw["default_suite"] = {SUITE: raw["suites"][SUITE]}, SUITE
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        target = raw["suites"][SUITE]["defaults"] if not section else next(iter(raw[section].values()))
        target[key] = value
    return raw


def plan_of(**changes: Any) -> Plan:
    return make_plan(parse_config(config_of(**changes)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """All runs of the first seed at both sparsities."""
    root, plan = tmp_path_factory.mktemp("classifiers"), plan_of(seed=0)
    runner = Runner(root, ExecutionConfig(device="cpu"), 1.0)
    for run in plan.runs[SUITE]:
        runner.need(run.evaluation)
    return root, plan


# --- config and plan -------------------------------------------------------------------------------------------------


def test_every_trained_classifier_has_a_dense_run_and_its_pruned_ones():
    runs = plan_of().runs[SUITE]
    kinds = [type(run.evaluation) for run in runs]
    assert kinds == 2 * [ClassifierSpec, *4 * [SparseClassifierSpec]]
    assert [run.axes is None for run in runs] == 2 * [True, *4 * [False]]
    assert {run.model for run in runs} == {"tiny-stripes"}
    plan = plan_of()
    stages = [spec.stage for spec in plan.needed(SUITE)]
    assert {stage: stages.count(stage) for stage in set(stages)} == {
        "images": 1, "classifiers": 2, "sparse_classifiers": 8
    }  # fmt: skip
    assert plan.exports(SUITE) == []


def test_specs_are_read_back_and_have_costs_and_code():
    plan = plan_of()
    for spec in plan.needed(SUITE):
        assert parse_spec(spec.model_dump(mode="json")) == spec
        found = cost(spec, plan.config)
        assert found.disk > 0 and found.host > 0
        assert (found.operations > 0) == (spec.stage != "images")
    assert len({code_of(spec) for spec in plan.needed(SUITE)}) == 4  # erk and lamp are code of their own


def test_what_does_not_change_a_result_is_no_part_of_its_key():
    keys = {spec.key for spec in plan_of().needed(SUITE)}
    assert {spec.key for spec in plan_of(images__licence="mine").needed(SUITE)} == keys
    every = list(reversed(BACKENDS))
    assert {spec.key for spec in plan_of(backends=every).needed(SUITE)} == keys
    assert keys.isdisjoint({spec.key for spec in plan_of(images__size=9).needed(SUITE)})
    fewer = {spec.key for spec in plan_of(backends=["none", "recalibrate"]).needed(SUITE)}
    assert len(keys & fewer) == 3  # the images and both dense classifiers


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
    ],
)
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


def test_more_calibration_images_than_there_are_is_refused():
    raw = config_of()
    wheel = {"package": "p", "version": "1", "sha256": "0" * 64, "member": "m"}
    raw["images"]["stripes"] = {"wheel": wheel, "splits": {"train": 10, "test": 5}, "size": 8, "classes": 2}
    with pytest.raises(FreelunchError, match=r"calibration_images is 16, and images.stripes has 10 to train on"):
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


def test_runs_of_language_models_still_need_tasks():
    raw: dict[str, Any] = read_yaml(ROOT / "tests/tiny.yaml")
    del raw["suites"]["tiny"]["evaluate"]
    with pytest.raises(FreelunchError, match=r"suites.tiny.evaluate: this key is missing"):
        make_plan(parse_config(raw))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plan_knows_the_shapes_of_networks(name):
    network = build(name, 7, 3, width=4)
    positions: dict[str, int] = {}
    for layer_name, layer in layers_of(network).items():
        layer.register_forward_hook(
            lambda _, __, outputs, layer_name=layer_name: positions.__setitem__(layer_name, outputs[0, 0].numel())
        )
    network(torch.zeros(1, 3, 20, 20))
    found = list(convolutions(name, 7, 3, 20, 4))
    assert [each.weights for each in found] == [layer.weight.numel() for layer in layers_of(network).values()]
    assert [each.positions for each in found] == [positions[each] for each in layers_of(network)]


# --- stages ----------------------------------------------------------------------------------------------------------


def test_images_of_folders_are_read_in_turn_and_stored_as_bytes(finished: tuple[Path, Plan]):
    root, plan = finished
    spec = next(spec for spec in plan.specs.values() if isinstance(spec, ImagesSpec))
    artifact = Artifact(root / spec.folder, spec)
    assert artifact.manifest["splits"] == {"train": 24, "test": 12}
    train = load_file(artifact.file("train.safetensors"))
    assert train["pixels"].shape == (24, 3, 8, 8) and train["pixels"].dtype == torch.uint8
    assert train["labels"].tolist() == 12 * [0, 1]
    few = folder_images(ROOT / "tests/data/images/train", 4, most=5)
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
    raw = config_of(seed=0)
    folder = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("a", "b", "c"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "1.png").write_bytes(
                (ROOT / "tests/data/images/test/vertical/00.png").read_bytes()
            )
    raw["images"]["stripes"]["path"] = str(folder)
    plan = make_plan(parse_config(raw))
    spec = next(spec for spec in plan.specs.values() if isinstance(spec, ImagesSpec))
    with pytest.raises(FreelunchError, match=r"images.stripes: classes is 2, and train has the label 2"):
        Runner(tmp_path, ExecutionConfig(device="cpu"), 1.0).need(spec)
    assert not (tmp_path / spec.folder / "train.safetensors").exists()


def test_hub_images_are_read_from_local_files_of_the_same_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("RGB", (12, 10), (20 * k, 0, 0)) for k in range(6)]
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
    plan = make_plan(parse_config(raw))
    spec = next(spec for spec in plan.specs.values() if isinstance(spec, ImagesSpec))
    artifact = Runner(tmp_path, ExecutionConfig(device="cpu"), 1.0).need(spec)
    train = load_file(artifact.file("train.safetensors"))
    assert train["pixels"].shape == (4, 3, 8, 8) and train["pixels"][:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert train["labels"].tolist() == [0, 1, 0, 1]


def test_classifiers_are_trained_and_their_accuracy_is_in_the_manifest(finished: tuple[Path, Plan]):
    root, plan = finished
    spec = next(spec for spec in plan.specs.values() if isinstance(spec, ClassifierSpec))
    manifest = Artifact(root / spec.folder, spec).manifest
    assert manifest["accuracy"]["test"] > 0.7 and manifest["losses"][-1] < manifest["losses"][0]
    assert manifest["images"] == {"train": 24, "test": 12} and len(manifest["losses"]) == 4
    assert manifest["parameters"] == sum(each.numel() for each in random_network(spec).parameters())


def test_a_classifier_comes_out_the_same_again(finished: tuple[Path, Plan], tmp_path: Path):
    root, plan = finished
    runner = Runner(tmp_path, ExecutionConfig(device="cpu"), 1.0)
    run = plan.runs[SUITE][1]
    assert runner.need(run.evaluation).digest != ""
    one, other = ((each / run.evaluation.folder / "metrics.json").read_bytes() for each in (root, tmp_path))
    assert one == other


def test_a_diverging_classifier_is_refused():
    images = Images(torch.full((16, 1, 8, 8), torch.nan), torch.zeros(16, dtype=torch.long))
    recipe = ClassifierConfig(architecture="resnet18", width=2, epochs=2, batch_size=8)
    from freelunch.vision.networks import train

    with pytest.raises(FreelunchError, match="name: the loss of epoch 0 is nan; lower its learning_rate"):
        train(build("resnet18", 2, 1, width=2), images, recipe, 0, "name")


def test_masks_and_metrics_of_a_pruned_classifier(finished: tuple[Path, Plan]):
    root, plan = finished
    spec = plan.runs[SUITE][2].evaluation
    assert isinstance(spec, SparseClassifierSpec) and spec.pattern == "80% per matrix" and spec.allocation == "lamp"
    artifact = Artifact(root / spec.folder, spec)
    masks = load_file(artifact.file("masks.safetensors"))
    network = random_network(spec.dense)
    layers = layers_of(network)
    assert list(layers) and set(masks) == set(layers)
    kept = {name: unpack(mask, layers[name].weight[0].numel()) for name, mask in masks.items()}
    size = sum(mask.numel() for mask in kept.values())
    assert size - sum(int(mask.sum()) for mask in kept.values()) == int(0.8 * size + 0.5)
    assert artifact.manifest["achieved_sparsity"] == pytest.approx(0.8, abs=1 / size)
    records = json.loads(artifact.file("metrics.json").read_text())
    accuracies = {record["backend"]: record for record in records if record["metric"] == "accuracy"}
    assert tuple(accuracies) == BACKENDS
    for record in accuracies.values():
        value = record["value"]
        assert record["stderr"] == pytest.approx((value * (1 - value) / 12) ** 0.5)
    density = {record["position"]: record["value"] for record in records if record["metric"] == "layer_density"}
    assert density == pytest.approx({name: float(mask.double().mean()) for name, mask in kept.items()})
    assert [record["step"] for record in records if record["metric"] == "layer_density"] == [*range(1, len(layers) + 1)]
    ratios = [record["value"] for record in records if record["metric"] == "relative_repairability"]
    assert ratios and all(ratio >= 0 for ratio in ratios)


def test_the_epsilon_of_norms_is_that_of_the_config_and_the_control_has_another(tmp_path: Path):
    plan = plan_of(seed=0, classifiers__epsilon=0.25)
    spec = plan.runs[SUITE][1].evaluation
    artifact = Runner(tmp_path, ExecutionConfig(device="cpu"), 1.0).need(spec)
    records = json.loads(artifact.file("metrics.json").read_text())
    found = {record["backend"]: record["value"] for record in records if record["metric"] == "epsilon"}
    assert found == {name: 1e-12 if name == "recalibrate_epsilon" else 0.25 for name in BACKENDS if name != "none"}


def test_variances_of_norms_are_those_after_recalibration(finished: tuple[Path, Plan]):
    root, plan = finished
    spec = plan.runs[SUITE][1].evaluation
    assert isinstance(spec, SparseClassifierSpec)
    records = json.loads((root / spec.folder / "metrics.json").read_text())
    at = [r for r in records if r["backend"] == "recalibrate" and r.get("position") == "norm"]
    values = {record["metric"]: record["value"] for record in at}
    train = unpacked(**load_file(root / spec.dense.images.folder / "train.safetensors"))
    pixels = drawn(train.normalised(train), 16, 0)
    network = random_network(spec.dense)
    network.load_state_dict(load_file(root / spec.dense.folder / "network.safetensors"))
    network, _ = prune(network, spec.method, pixels)
    found = network.stem(pixels).detach().double().var((0, 2, 3), correction=0)
    assert values["least_variance"] == pytest.approx(float(found[found > 0].min()), rel=1e-4)
    assert values["median_variance"] == pytest.approx(float(found[found > 0].median()), rel=1e-4)
    assert values["silent_channels"] == float((found == 0).double().mean()) and values["faint_channels"] == 0


@pytest.mark.parametrize("label", [-1, None, "cat", 0.5, True])
def test_labels_that_are_none_are_refused(label: Any):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(FreelunchError, match=r"record 0: label is .*, not a whole number from 0 up"):
        dataset_images([{"image": image.new("RGB", (4, 4)), "label": label}], "image", "label", 4)


def test_more_images_than_there_are_cannot_be_drawn():
    images = Images(torch.zeros(10, 1, 1, 1), torch.arange(10))
    with pytest.raises(FreelunchError, match="calibration_images is 11, and there are 10 images to train on"):
        drawn(images, 11, 0)


def test_calibration_images_are_drawn_by_seed():
    images = Images(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    one, same, other = (drawn(images, 4, seed).flatten().tolist() for seed in (0, 0, 1))
    assert one == same != other and len(set(one)) == 4


# --- rows ------------------------------------------------------------------------------------------------------------


def test_every_backend_is_a_run_with_its_protocol(finished: tuple[Path, Plan], tmp_path: Path):
    root, plan = finished
    collect(SUITE, [run.evaluation for run in plan.runs[SUITE]], root, tmp_path)
    from freelunch.report.rows import read_rows

    rows = read_rows(tmp_path / "rows.parquet")
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")]
    assert len(accuracy) == 1 + 4 * len(BACKENDS) == rows["run"].nunique()
    dense = accuracy[accuracy["criterion"] == "dense"]
    assert dense["model"].tolist() == ["tiny-stripes"] and dense["backend"].isna().all()
    pruned = accuracy[accuracy["criterion"] != "dense"]
    assert set(pruned["calibration_images"]) == {16} and set(pruned["dataset"]) == {"stripes"}
    recoveries = dict(zip(pruned["backend"], pruned["recovery"], strict=True))
    assert recoveries["none"] == "none" and recoveries["reconstruct"] == "reconstruct"
    assert recoveries["shrink"] == "repair" and recoveries["recalibrate_epsilon"] == "recalibrate"
    assert rows[rows["metric"] == "least_variance"]["backend"].notna().all()
    assert to_frame(copy.deepcopy(rows.to_dict("records"))).equals(rows)
