"""What jobs took, from their manifests: seconds, peak memory, rate of training, and the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """A finished result of a stage.

    Attributes:
        seconds: of its job, or of all training if that was interrupted.
        peak_gib: of the device where there is one, else of the process.
        tokens: that went through the network; None where that is no measure of the work.
        machine: device, threads and cores.
        finished: ISO 8601, UTC.
    """

    stage: str
    name: str
    seconds: float
    peak_gib: float
    tokens: int | None
    machine: str
    finished: str
    versions: Mapping[str, str]

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass(frozen=True)
class Total:
    """All jobs of one stage, or of several."""

    stage: str
    jobs: int
    seconds: float
    longest: float
    peak_gib: float
    rate: float | None


def job_of(stage: str, name: str, manifest: Mapping[str, Any]) -> Job:
    """What a manifest says of its job."""
    tokens = manifest.get("tokens")
    if "training_tokens" in manifest:
        # a model that is trained from random weights is given its rate
        tokens = manifest["training_tokens"] + manifest.get("search_tokens", 0)
    return Job(
        stage=stage, name=name, seconds=float(manifest.get("train_seconds", manifest["seconds"])),
        peak_gib=float(manifest.get("peak_device_gib", manifest["peak_gib"])),
        # tokens by split are those of a calibration set: no network has seen them yet
        tokens=None if isinstance(tokens, dict) else tokens,
        machine=f"{manifest['device']}, {manifest['threads']} of {manifest['cpus']} cores",
        finished=str(manifest["finished"]), versions=dict(manifest["versions"]),
    )  # fmt: skip


def totals(jobs: Iterable[Job]) -> list[Total]:
    """One line per stage in the order of the jobs, and the sum of all."""
    stages: dict[str, list[Job]] = {}
    for job in jobs:
        stages.setdefault(job.stage, []).append(job)
    lines = [_total(stage, found) for stage, found in stages.items()]
    every = [job for found in stages.values() for job in found]
    return [*lines, _total("all", every, rated=False)] if every else []


def versions(jobs: Iterable[Job]) -> dict[str, list[str]]:
    """Every version of every library that some job ran with."""
    found: dict[str, set[str]] = {}
    for job in jobs:
        for library, version in job.versions.items():
            found.setdefault(library, set()).add(version)
    return {library: sorted(found[library]) for library in sorted(found)}


def _total(stage: str, jobs: list[Job], rated: bool = True) -> Total:
    known = [job for job in jobs if job.rate is not None]
    seconds = sum(job.seconds for job in known)
    rate = sum(job.tokens or 0 for job in known) / seconds if rated and seconds else None
    return Total(
        stage,
        len(jobs),
        sum(job.seconds for job in jobs),
        max(job.seconds for job in jobs),
        max(job.peak_gib for job in jobs),
        rate,
    )
