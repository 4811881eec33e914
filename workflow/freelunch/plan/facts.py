"""What the plan must know of a model before it is downloaded: its shape, as the config or a catalogue has it.

It is checked against the real ``config.json`` when the model is prepared. Names are those of Hugging Face configs;
models whose config says ``ffn_dim`` have an ungated MLP of two matrices, all others one of three.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from freelunch.errors import FreelunchError, naming
from freelunch.plan.config import CATALOGUES, Config, ModelConfig
from freelunch.plan.section import Section, validate

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Facts(Section):
    """Shape of a decoder-only language model."""

    model_type: str
    num_hidden_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    tie_word_embeddings: bool = True
    mlp_matrices: int = Field(default=3, ge=2, le=3)

    @model_validator(mode="before")
    @classmethod
    def _from_hugging_face(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        known = {name: raw[name] for name in cls.model_fields if raw.get(name) is not None}
        if "ffn_dim" in raw:
            known |= {"intermediate_size": raw["ffn_dim"], "mlp_matrices": 2}
        width, heads = known.get("hidden_size"), known.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            if width % heads and "head_dim" not in known:
                raise ValueError(f"hidden_size, {width}, is no multiple of num_attention_heads, {heads}; give head_dim")
            known.setdefault("num_key_value_heads", heads)
            known.setdefault("head_dim", width // heads)
        return known

    @model_validator(mode="after")
    def _groups(self) -> Facts:
        heads, keys = self.num_attention_heads, self.num_key_value_heads
        if heads % keys:
            raise ValueError(f"num_attention_heads, {heads}, is no multiple of num_key_value_heads, {keys}")
        return self

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the prunable matrices of one block, by role."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes = {
            "q": (queries, self.hidden_size),
            "k": (keys, self.hidden_size),
            "v": (keys, self.hidden_size),
            "o": (self.hidden_size, queries),
            "up": (self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }
        if self.mlp_matrices == 3:
            shapes["gate"] = shapes["up"]
        return shapes

    @property
    def block_parameters(self) -> int:
        """Prunable weights of one block."""
        return sum(rows * columns for rows, columns in self.matrices.values())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and the head, counted once when tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """Weights of the model, norms and biases left out."""
        return self.num_hidden_layers * self.block_parameters + self.embedding_parameters


def facts_of_file(path: Path) -> Facts:
    """Facts of a model by its ``config.json``.

    Raises:
        FreelunchError: the file cannot be read, or is none.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FreelunchError(f"cannot read {path}: {error}") from None
    return validate(Facts, raw, str(path))


def facts_of(config: Config, name: str) -> Facts:
    """Facts of a model of the config; fails as :func:`facts_of_source` does."""
    return facts_of_source(name, config.models[name])


def facts_of_source(name: str, model: ModelConfig) -> Facts:
    """Facts of a model, by the entry that the config has under ``models.<name>``.

    Raises:
        FreelunchError: nothing is known of it.
    """
    key = f"models.{name}"
    if model.random is not None:
        return validate(Facts, model.random.config, f"{key}.random.config")
    if model.train is not None:
        return validate(Facts, model.train.config, f"{key}.train.config")
    if model.shape is not None:
        return validate(Facts, model.shape, f"{key}.shape")
    if model.path is not None:
        with naming(f"{key}.path"):
            return facts_of_file(Path(model.path).expanduser() / "config.json")
    raise FreelunchError(
        f"{key}.shape: this key is missing; it is the model's config.json, cut to the keys of the entries in "
        f"workflow/{CATALOGUES.name}/models.yaml"
    )
