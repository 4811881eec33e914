"""Images with labels, from a table in a wheel, a data set of the hub or folders, in splits that share no image."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.errors import FreelunchError

_PACKED = 4096
"""Images that are rounded at a time."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels ``[images, channels, height, width]`` float32 and labels ``[images]`` int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def packed(self) -> dict[str, Tensor]:
        """As they are stored: pixels are bytes. Sources have no finer ones."""
        parts = [(part * 255).round_().to(torch.uint8) for part in self.pixels.split(_PACKED)]
        return {"pixels": torch.cat(parts), "labels": self.labels}

    def normalised(self, like: Images) -> Images:
        """Every channel less its mean over other images, and over its standard deviation there."""
        deviation, mean = (each.view(1, -1, 1, 1) for each in torch.std_mean(like.pixels, dim=(0, 2, 3)))
        return Images((self.pixels - mean).div_(deviation.clamp_(min=1e-6)), self.labels)


def unpacked(pixels: Tensor, labels: Tensor) -> Images:
    """Images of what :meth:`Images.packed` gave."""
    return Images(pixels.float() / 255, labels)


def table_images(stream: IO[bytes], where: str) -> Images:
    """Square grey images of a gzipped CSV: a row has its pixels of 0 to 255, row by row, and then its label.

    Raises:
        FreelunchError: it cannot be read, rows differ in length, or their pixels make no square.
    """
    try:
        with gzip.open(stream) as plain:
            rows = list(csv.reader(io.TextIOWrapper(plain, "ascii")))
        table = torch.from_numpy(np.array(rows, dtype=np.float32))
    except (OSError, EOFError, ValueError) as error:
        raise FreelunchError(f"{where}: is no gzipped table of numbers ({error})") from None
    side = math.isqrt(table.shape[-1] - 1) if table.ndim == 2 else 0
    if side * side + 1 != table.shape[-1] or not side:
        raise FreelunchError(f"{where}: rows are not the pixels of a square image and a label")
    return Images(table[:, :-1].reshape(-1, 1, side, side) / 255, table[:, -1].long())


def dataset_images(records: Iterable[Any], image: str, label: str, size: int) -> Images:
    """The images of a data set of the ``datasets`` library, in colour, their shorter side scaled to ``size``, cropped.

    ``image`` is the field of a PIL image, ``label`` that of a whole number.

    Raises:
        FreelunchError: a field is missing, a label is none, or there is no record.
    """
    pixels: list[Tensor] = []
    labels: list[int] = []
    for record in tqdm(records, "images", unit="", mininterval=5):
        for field in (image, label):
            if field not in record:
                raise FreelunchError(f"the data set has no field {field!r}; it has {', '.join(record)}")
        if isinstance(record[label], bool) or not isinstance(record[label], int) or record[label] < 0:
            raise FreelunchError(f"record {len(labels)}: {label} is {record[label]!r}, not a whole number from 0 up")
        pixels.append(_square(record[image], size))
        labels.append(record[label])
    return _stacked(pixels, labels)


def folder_images(folder: Path, size: int, most: int | None = None) -> Images:
    """The images below a folder, whose own folders are the classes, numbered in the order of their names.

    They become squares as in :func:`dataset_images`. ``most`` of them are taken, from the classes in turn.

    Raises:
        FreelunchError: the folder is missing or has no images, or a file in it is none.
    """
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise FreelunchError(f"{folder} does not exist")
    classes = sorted(each for each in folder.iterdir() if each.is_dir())
    files = [[(path, label) for path in sorted(each.rglob("*")) if path.suffix.lower() in _SUFFIXES]
             for label, each in enumerate(classes)]  # fmt: skip
    # in turn, so that the first of them are of all classes
    order = [file for turn in zip_longest(*files) for file in turn if file is not None][:most]
    pixels = []
    for path, _ in tqdm(order, "images", unit="", mininterval=5):
        try:
            with Image.open(path) as picture:
                pixels.append(_square(picture, size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise FreelunchError(f"{path}: cannot be read as an image ({error})") from None
    if not pixels:
        raise FreelunchError(f"{folder} has no folders with images ({', '.join(_SUFFIXES)})")
    return _stacked(pixels, [label for _, label in order])


def _square(image: Any, size: int) -> Tensor:
    """Bytes ``[3, size, size]`` of a PIL image."""
    picture = image.convert("RGB")
    scale = size / min(picture.size)
    if scale != 1:
        picture = picture.resize([max(size, round(side * scale)) for side in picture.size])
    left, top = ((side - size) // 2 for side in picture.size)
    cropped = picture.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


def _stacked(pixels: list[Tensor], labels: list[int]) -> Images:
    if not pixels:
        raise FreelunchError("the data set has no images")
    return unpacked(torch.stack(pixels), torch.tensor(labels))


def split(images: Images, counts: Mapping[str, int], seed: int) -> dict[str, Images]:
    """Disjoint parts drawn at random, in the order of ``counts``, on which they depend; too few images are refused."""
    if sum(counts.values()) > len(images):
        raise FreelunchError(f"{sum(counts.values())} images are asked for, and there are {len(images)}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts, start = {}, 0
    for name, count in counts.items():
        drawn = order[start : start + count]
        parts[name] = Images(images.pixels[drawn], images.labels[drawn])
        start += count
    return parts
