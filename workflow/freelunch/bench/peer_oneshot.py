"""Prune a model with llm-compressor, in an environment of its own that has neither this package nor its pins.

Run as a script: ``peer_oneshot.py MODEL TOKENS CRITERION SPARSITY MASK OUTPUT``, where TOKENS is a safetensors file with
``calibration [sequences, length]``, MASK ``0:0`` (unstructured) or ``2:4``. Prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time


def main() -> None:
    """Run it."""
    model_folder, tokens_file, criterion, sparsity, mask, output = sys.argv[1:]
    import torch
    from datasets import Dataset
    from llmcompressor import __version__, oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[criterion]
    rows = load_file(tokens_file)["calibration"].long()
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
    started = time.perf_counter()
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(model_folder),
        dataset=data,
        recipe=modifier(sparsity=float(sparsity), mask_structure=mask, targets=["Linear"], ignore=["lm_head"]),
        num_calibration_samples=len(rows),
        max_seq_length=rows.shape[1],
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    model.save_pretrained(output, save_compressed=False)
    print(json.dumps({"version": __version__, "seconds": seconds, "peak_gib": peak}))


if __name__ == "__main__":
    main()
