"""``python -m benchmarks [PART …]``: use of the machine, what shards bring, cost of pruning, peak memory."""

from __future__ import annotations

import argparse

from . import memory, pruning, shards, stages

PARTS = {
    "stages": stages.main, "shards": shards.main, "pruning": pruning.main, "memory": memory.main,
}  # fmt: skip


def main() -> None:
    """Run the benchmarks that were asked for, or all of them."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them (default: all)")
    for part in parser.parse_args().parts or PARTS:
        print(f"== {part} ==\n")
        PARTS[part]()


if __name__ == "__main__":
    main()
