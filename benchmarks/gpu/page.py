"""``python -m benchmarks.gpu.page [gpu.json] > docs/gpu.md``: the page on GPUs, from a run's numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .__main__ import SECONDS, table

HEAD = """# On a GPU

`make gpu`, or `benchmarks/gpu.sh` where there is no make, checks and measures the GPU path in at most eight minutes:

* `checks`: every stage on the GPU against the CPU, on tiny models of five families in float32 and of one in bfloat16
  and float16; deterministic mode, also after a kill; compiled training; two shards on one card; running out of memory.
  Classifiers need pillow for that, and zero-shot tasks lm-eval; elsewhere they are left out.
* `pipeline`: the trained model `llama-15m` at 2:4: Wanda and SparseGPT, four windows, retraining; perplexities beside
  the CPU's.
* `blocks`: blocks of 8B and 72B shape: dense pass, pruning and reconstruction as shares of the card's rate of matrix
  products, memory beside the plan's, the longest kernels, how long the card waits.
* `cache`: what the dense cache delivers from memory and from disk, beside what a training step needs.
* `sparse`: 2:4 products beside dense ones, by shape.

`benchmarks/gpu.sh PART ...` runs some of them; `--device cpu --smallest` shows in minutes that the script
itself works. Numbers and logs go to the folder that `OUT` names;
`python -m benchmarks.gpu.page $OUT/gpu.json > docs/gpu.md` writes this page.

On a machine without a package index, first run `python -m benchmarks.gpu.carry` where there is one: it puts the wheels
that a plain environment with torch lacks (CPython 3.12, x86-64), the text and the trained model into `.gpu/`; copy the
repository with that folder, which git ignores.

"""
"""What the page says of any run."""
NEVER = "None of it has run on a GPU yet.\n"


def page(result: dict[str, Any] | None) -> str:
    """The page of a run's numbers; without, it says that there was none."""
    if result is None:
        return HEAD + NEVER
    machine, first = result["machine"], table(result)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    card = machine.get("card")
    ran = (
        f"{card} ({machine['card GiB']} GiB), driver {machine['driver']}, CUDA {machine['cuda']}" if card else "the CPU"
    )
    text = f"Run on {ran}; {machine['cpus']} cores; {versions}.\n"
    if missing := [part for part in SECONDS if part not in result["parts"]]:
        text += f"\nNot run: {', '.join(missing)}.\n"
    if result["smallest"]:
        text += "\nThe smallest sizes: they say nothing about speed.\n"
    return HEAD + text + "\n```\n" + "\n".join(first).strip() + "\n```\n"


def main() -> None:
    """Print the page of the numbers that are named, or that there are none."""
    given = sys.argv[1:]
    print(page(json.loads(Path(given[0]).read_text(encoding="utf-8")) if given else None), end="")


if __name__ == "__main__":
    main()
