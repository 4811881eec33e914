"""Prepare a data set of images: one file of pixels and labels per split."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from freelunch.errors import FreelunchError, naming
from freelunch.inputs.sources import hub_error, wheel_member, wheel_path
from freelunch.plan.config import Hub
from freelunch.results.stage import Stage
from freelunch.vision.images import Images, dataset_images, folder_images, split, table_images
from freelunch.vision.runs import ImagesSpec
from freelunch.vision.sections import PARTS, ImagesConfig, Part


def make(stage: Stage) -> None:
    """Write ``<split>.safetensors`` for every split: ``pixels`` bytes ``[images, channels, size, size]``, ``labels``.

    Raises:
        FreelunchError: the source cannot be fetched or read, or is not of the size and classes that the config says.
    """
    spec = stage.spec
    assert isinstance(spec, ImagesSpec)
    source = spec.source
    with naming(f"images.{spec.images}"):
        parts = _parts(stage, source)
        for name, images in parts.items():
            _check(images, source, name)
            stage.write_tensors(f"{name}.safetensors", images.packed())
    sizes = {name: len(images) for name, images in parts.items()}
    stage.finish(splits=sizes, classes=source.classes, licence=source.licence)


def _parts(stage: Stage, source: ImagesConfig) -> dict[Part, Images]:
    if source.wheel is not None:
        counts: dict[str, int] = {name: value for name in PARTS if isinstance(value := source.splits[name], int)}
        path = wheel_path(stage.root, source.wheel)
        with wheel_member(path, source.wheel.member, source.wheel.sha256) as stream:
            images = table_images(stream, f"{path}: {source.wheel.member}")
        drawn = split(images, counts, source.seed)
        return {name: drawn[name] for name in PARTS}
    found: dict[Part, Images] = {}
    for name in PARTS:
        asked = str(source.splits[name])
        if source.hub is not None:
            found[name] = _hub(source.hub, asked, source)
        else:
            assert source.path is not None
            folder = stage.root / Path(source.path).expanduser() / asked
            found[name] = folder_images(folder, source.size, source.max_images)
    return found


def _hub(hub: Hub, name: str, source: ImagesConfig) -> Images:
    """The images of a split of a hub data set; they are decoded as they are read."""
    from datasets import load_dataset

    try:
        records = islice(load_dataset(hub.id, hub.subset, split=name, revision=hub.revision), source.max_images)
        return dataset_images(records, source.image, source.label, source.size)
    except FreelunchError:
        raise
    except Exception as error:
        raise hub_error(error, hub) from None


def _check(images: Images, source: ImagesConfig, name: Part) -> None:
    """Refuse images that are not what the config says: the plan counts on it."""
    size = images.pixels.shape[-1]
    if size != source.size:
        raise FreelunchError(f"size is {source.size}, and its images have a side of {size}")
    if not len(images):
        raise FreelunchError(f"splits.{name}: {source.splits[name]!r} has no images")
    found = images.labels.unique().tolist()
    if found[0] < 0 or found[-1] >= source.classes:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise FreelunchError(f"classes is {source.classes}, and {name} has the label {wrong}")
    if name == "train" and len(found) < source.classes:
        raise FreelunchError(
            f"classes is {source.classes}, and only {len(found)} of them are among the training images"
        )
