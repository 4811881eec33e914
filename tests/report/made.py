"""Rows of made-up runs, for tests of tables and figures."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pandas as pd

from freelunch.report import rows

Record = dict[str, Any]
ALL, LORA = "full + biases + norms", "lora_prune + biases + norms"
BLOCKS = 3
TRAINING: Record = {
    "loss": "mse", "optimizer": "adamw", "learning_rate": "0.001", "schedule": "linear", "warmup": 0.1, "epochs": 2,
    "batch_size": 2, "accumulation": 1, "clip": 0.0, "patience": 0,
}  # fmt: skip
BASE: Record = {
    "suite": "s", "model": "m", "calibration": "wiki", "parameters": 10**6,
    "sequences": 32, "calibration_tokens": 32 * 256,
    "validation_sequences": 8, "sampling": "packed", "criterion": "wanda", "pattern": "2:4", "allocation": "uniform",
    "refinement": "none", "prune_inputs": "dense", "seed": 0, "recovery": "none", "seconds": 4.0, "peak_gib": 1.0,
}  # fmt: skip
LOCAL: Record = TRAINING | {
    "recovery": "reconstruct", "window": "attention_mlp", "flow": "dense", "parametrization": ALL, "targets": "all",
    "training_sequences": 32, "training_tokens": 2 * 32 * 256, "seconds": 100.0, "peak_gib": 2.0,
    "trainable_parameters": 1000,
}  # fmt: skip
RETRAINED = LOCAL | {"recovery": "retrain", "window": None, "flow": None, "loss": "cross_entropy"}
EXACT = LOCAL | dict.fromkeys(TRAINING) | {"window": "matrix_exact", "training_tokens": None}


class Suite:
    """Collects the records of runs; each gets a name of its own."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.dense = BASE | {"run": "dense", "criterion": "dense", "pattern": "dense"}
        kept = ("suite", "model", "parameters", "recovery", "run", "criterion", "pattern")
        self.dense = {name: value for name, value in self.dense.items() if name in kept}
        self.records += self._perplexity(self.dense, 14.0, 15.0)

    @staticmethod
    def _perplexity(run: Record, test: float, validation: float | None) -> list[Record]:
        at = run | {"metric": "ppl@256", "dataset": "wiki", "length": 256, "stderr": 0.3}
        found = [at | {"split": "test", "value": test}, at | {"dataset": "german", "split": "test", "value": 3 * test}]
        return found + ([] if validation is None else [at | {"split": "validation", "value": validation}])

    def add(self, test: float, validation: float | None = None, **changes: Any) -> Record:
        """A run that is not recovered unless the changes say so."""
        run = BASE | changes | {"run": f"run{len(self.records)}"}
        self.records += self._perplexity(run, test, test + 1 if validation is None else validation)
        return run

    def local(self, test: float, validation: float | None = None, **changes: Any) -> Record:
        """A reconstructed run."""
        return self.add(test, validation, **(LOCAL | changes))

    def other_dense(self, model: str, parameters: int, test: float) -> Record:
        """The dense run of another model."""
        run = self.dense | {"run": f"dense-{model}", "model": model, "parameters": parameters}
        self.records += self._perplexity(run, test, test + 1)
        return run

    def tasks(self, run: Record, **scores: float) -> None:
        """Accuracies of a run in tasks, as fractions, their mean, and chance at one half."""
        at = run | {"split": "test", "stderr": 0.01}
        for task, score in scores.items():
            self.records.append(at | {"metric": "acc", "dataset": task, "value": score})
            self.records.append(at | {"metric": "chance", "dataset": task, "value": 0.5, "stderr": None})
        mean = sum(scores.values()) / len(scores)
        self.records.append(at | {"metric": "acc_mean", "dataset": None, "value": mean})

    def drift(self, run: Record, value: float) -> None:
        """The same drift at two blocks, alone and accumulated."""
        at = run | {"dataset": "wiki", "split": "test", "length": 256, "value": value}
        self.records += [at | {"metric": metric, "position": block} for metric in ("drift_local", "drift_accumulated")
                         for block in ("0", "1")]  # fmt: skip

    def extend(self, other: Suite) -> None:
        """Add the runs of another suite, but for its dense model."""
        place = len(self.records)
        self.records += [record | {"run": f"{place}-{record['run']}"} for record in other.records[3:]]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows."""
        return rows.to_frame(self.records)


def criteria(values: dict[str, tuple[float, float]], **about: Any) -> Suite:
    """Criteria before and after recovery, with one seed."""
    suite = Suite()
    for criterion, (before, after) in values.items():
        suite.add(before, criterion=criterion, **about)
        suite.local(after, criterion=criterion, **about)
    return suite


def sweep_suite() -> Suite:
    """Two rates and two lengths over two seeds, and the search of a rate with both lengths."""
    suite = Suite()
    for rate, epochs, test, validation in [
        ("0.0001", 1, 33.0, 31.0), ("0.0001", 2, 31.0, 30.0), ("0.01", 1, 29.0, 32.0), ("0.01", 2, math.nan, math.nan),
    ]:  # fmt: skip
        for seed in (0, 1):
            suite.local(test + seed, validation + seed, learning_rate=rate, epochs=epochs, seed=seed)
    for epochs, test, validation in ((1, 28.0, 40.0), (2, 30.0, 31.0)):
        for seed in (0, 1):
            suite.local(test + seed, validation, learning_rate="auto", epochs=epochs, seed=seed, seconds=250.0)
    return suite


def windows() -> Suite:
    """A reconstruction of two blocks by halves, whose losses fall by a fifth and rise again."""
    suite = Suite()
    run = suite.local(30.0)
    for block, half in product((0, 1), ("attention", "mlp")):
        at = run | {"position": f"{block}.{half}", "split": "validation"}
        losses = {0: 2.0 + block, 8: 0.8 * (2.0 + block), 16: 0.9 * (2.0 + block)}
        suite.records += [at | {"metric": "validation_loss", "step": s, "value": value} for s, value in losses.items()]
        suite.records.append(at | {"metric": "best_validation_loss", "step": 8, "value": losses[8]})
    return suite


def everything(seeds: tuple[int, ...] = (0, 1)) -> Suite:
    """A suite with every comparison, at two patterns."""
    suite = Suite()
    for pattern, factor in (("2:4", 1.0), ("50%", 0.7)):
        for seed in seeds:
            about: Record = {"pattern": pattern, "seed": seed}

            def put(test: float, a: Record = about, f: float = factor, s: int = seed, **changes: Any) -> Record:
                recovery = LOCAL if changes.pop("trained", True) else {}
                return suite.add((test + 0.4 * s) * f, **(recovery | a | changes))

            runs = [put(130.0, trained=False)]
            put(131.0, trained=False, sequences=8, calibration_tokens=8 * 256)
            windows = {"matrix": 43.1, "key_up": 36.0, "attention_mlp": 30.2, "block": 29.9, "3": 30.4, "model": 31.0}
            for place, (window, value) in enumerate(windows.items()):
                runs.append(put(value, window=window, peak_gib=1.5 + 0.4 * place))
                put(value + 1.5, window=window, parametrization="full", peak_gib=1.4 + 0.4 * place)
            put(44.0, **(EXACT | {"pattern": pattern, "seed": seed, "peak_gib": 1.2}))
            put(47.0, window="matrix", flow="official_matrix")
            put(41.0, window="matrix", targets="k_proj + up_proj")
            for flow, value in {"sparse_local": 33.0, "sparse_dense": 29.0}.items():
                put(value, flow=flow)
            for loss, value in {"normalized_mse": 30.5, "cosine": 34.0}.items():
                put(value, loss=loss)
            sizes = {"biases": 20, "norms": 60, LORA: 300, "mask_lora(rank=8)": 280,
                     "scale_lora": 280, "spp": 100}  # fmt: skip
            for place, (name, size) in enumerate(sizes.items()):
                run = put(31.0 + place, parametrization=name, trainable_parameters=size)
                if name.startswith("lora_prune"):
                    at = run | {"split": "validation", "position": "0.mlp", "step": 5}
                    suite.records.append(at | {"metric": "validation_loss", "value": 0.6})
                    suite.records.append(at | {"metric": "unmerged_validation_loss", "value": 0.5})
            for sequences, value in {8: 35.0, 128: 28.0}.items():
                tokens: Record = {"training_tokens": 2 * sequences * 256, "training_sequences": sequences}
                put(value, **tokens)
                put(value + 1, **tokens, sequences=sequences, calibration_tokens=sequences * 256)
            for rate in ("0.0001", "0.0003", "0.003"):
                for epochs in (1, 2):
                    put(30 + abs(math.log10(float(rate)) + 3) * 4 - epochs, learning_rate=rate, epochs=epochs,
                        training_tokens=epochs * 32 * 256)  # fmt: skip
            put(30.0, learning_rate="auto", seconds=250.0)
            for repair in ("channel", "layer", "shrink"):
                put(90.0 + len(repair), trained=False, recovery="repair", repair=repair)
            for loss, name, epochs in product(("cross_entropy", "kl"), (ALL, LORA), (2, 8, 32)):
                changes = {"loss": loss, "parametrization": name, "epochs": epochs, "seconds": 50.0 * epochs}
                tokens = epochs * 32 * 256
                runs.append(
                    put(
                        60 / epochs**0.3 + (loss == "kl") + 2 * (name == LORA),
                        **(RETRAINED | about | changes | {"training_tokens": tokens}),
                    )
                )
            for place, run in enumerate(runs):
                for block in range(8):
                    at = run | {"split": "test", "length": 256, "position": f"{block}"}
                    for dataset, more in {"wiki": 1.0, "german": 1.7}.items():
                        value = more * (0.02 + 0.5 / (place + 1))
                        suite.records.append(at | {"metric": "drift_local", "dataset": dataset, "value": value})
                        suite.records.append(
                            at
                            | {"metric": "drift_accumulated", "dataset": dataset, "value": value * (1 + block) ** 0.5}
                        )
    return suite
