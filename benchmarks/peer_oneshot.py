"""Prune a model with llm-compressor, in an environment of its own that has neither this package nor its pins.

Run as a script: ``peer_oneshot.py MODEL TOKENS CRITERION SPARSITY MASK DTYPE OUTPUT``. TOKENS is a safetensors file
with ``calibration [sequences, length]``, MASK ``0:0`` (unstructured) or ``2:4``, and DTYPE what the model is held and
computed in. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Run it."""
    model_folder, tokens_file, criterion, sparsity, mask, dtype, output = sys.argv[1:]
    import torch
    from datasets import Dataset
    from llmcompressor import __version__, oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[criterion]
    rows = load_file(tokens_file)["calibration"].long()
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    started = time.perf_counter()
    # as a pattern: names are compared with a dot behind them, and a plain "lm_head" is pruned, and a tied embedding too
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(model_folder),
        dataset=data,
        recipe=modifier(sparsity=float(sparsity), mask_structure=mask, targets=["Linear"], ignore=["re:.*lm_head"]),
        num_calibration_samples=len(rows),
        max_seq_length=rows.shape[1],
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - started
    # not from getrusage, whose peak begins with that of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) / 2**20 for line in status if line.startswith("VmHWM"))
    model.save_pretrained(output, save_compressed=False)
    print(json.dumps({"version": __version__, "seconds": seconds, "peak_gib": peak}))


if __name__ == "__main__":
    main()
