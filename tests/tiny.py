"""Tiny random-weight models of several families, dense and pruned, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from freelunch.engine.overlays import InMemory, Masked, pack
from freelunch.pruning.patterns import parse_pattern

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GATED = _COMMON | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "mistral": _GATED | {"sliding_window": 8},
    "gemma2": _GATED | {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {k: v for k, v in _GATED.items() if k != "head_dim"} | {"pad_token_id": 0},
    "opt": _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1},
}


def config_of(family: str, **changes: Any) -> Any:
    return AutoConfig.for_model(family, **(FAMILIES[family] | changes))


def random_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(family, **changes), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # norms of exactly 1 and biases of exactly 0 would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_tokens(batch: int, length: int, seed: int = 0, vocabulary: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (batch, length), generator=generator)


def magnitude_masks(state: Mapping[str, Tensor], prefix: str, pattern: str = "50%") -> dict[str, Tensor]:
    """Masks of all matrices in the blocks, whose names begin with ``prefix``."""
    how = parse_pattern(pattern)
    return {
        name: how.mask(tensor.float().abs(), how.pruned(tensor.numel()))
        for name, tensor in state.items()
        if name.startswith(f"{prefix}.") and tensor.ndim == 2
    }


def masked(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Masked:
    return Masked(InMemory(dict(state)), InMemory({name: pack(mask) for name, mask in masks.items()}))
