"""Dense models as plain Hugging Face directories: what such a directory must hold, and how to make one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freelunch.errors import FreelunchError, first_line, suggest
from freelunch.plan.config import Random
from freelunch.plan.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model*.bin"
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
"""Config and tokenizer files; no code (``*.py``) and nothing pickled (``*.bin``) is among them."""
_FLOATS = ("F64", "F32", "F16", "BF16")
END = "<|endoftext|>"


def checked_config(folder: Path) -> Any:
    """The config of a model directory, with all defaults of its family filled in.

    Raises:
        FreelunchError: the directory asks for custom code, is quantised, or is no model known to transformers.
    """
    from transformers import AutoConfig

    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        raw = read_object(path) if name == "config.json" or path.exists() else {}
        if raw.get("auto_map"):
            raise FreelunchError(
                f"{path}: asks for code of its own (auto_map), which is never run; use a model that transformers has"
            )
        if raw.get("quantization_config"):
            raise FreelunchError(f"{path}: the model is quantised (quantization_config); use the one it was made from")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a family's config raises whatever it likes at a value that it cannot take
        raise FreelunchError(f"{folder / 'config.json'}: {first_line(error)}") from None


def compare_facts(expected: Facts, config: Any, where: str) -> None:
    """Compare what the plan assumed of a model with its real config.

    Raises:
        FreelunchError: names every differing key with both values.
    """
    found = Facts.model_validate(config.to_dict())
    pairs = [
        (name, getattr(expected, name), getattr(found, name))
        for name in Facts.model_fields
        # configs do not say how many matrices an MLP has: the row is believed
        if name in expected.model_fields_set and name != "mlp_matrices"
    ]
    wrong = [f"{name} is {real}, the plan assumed {assumed}" for name, assumed, real in pairs if assumed != real]
    if wrong:
        raise FreelunchError(f"{where}: {'; '.join(wrong)}; correct the row that `facts` names, or the config")


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that make up a model, from its index if it has one."""
    if (folder / INDEX).exists():
        listed = read_object(folder / INDEX).get("weight_map")
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        bad = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if bad or not names:
            raise FreelunchError(
                f"{folder / INDEX}: names no safetensors files of this directory: {', '.join(bad)[:200] or 'none'}"
            )
        return names
    return [WEIGHTS]


def small_files(folder: Path) -> list[str]:
    """Names of the config and tokenizer files of a model directory."""
    names = {path.name for pattern in SMALL for path in folder.glob(pattern) if path.is_file()}
    # indices of weights in other formats would mislead readers, and a manifest would be taken for ours
    return sorted(name for name in names if name == INDEX or not name.endswith((".index.json", "manifest.json")))


def parameter_count(paths: list[Path]) -> int:
    """Numbers stored in safetensors files, read from their headers.

    Raises:
        FreelunchError: a file cannot be read, or a weight is not stored as a floating-point number.
    """
    from safetensors import safe_open

    count = 0
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                kinds = {name: str(each.get_dtype()) for name, each in slices.items()}
                count += sum(math.prod(each.get_shape()) for each in slices.values())
        except Exception as error:
            raise FreelunchError(f"{path}: is not a readable safetensors file: {error}") from None
        # not all quantised models say so in their config
        for name, kind in kinds.items():
            if name.endswith(".weight") and kind not in _FLOATS:
                raise FreelunchError(f"{path}: {name} is {kind}, which is quantised; use the model it was made from")
    return count


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model directory.

    Raises:
        FreelunchError: there is none, or it needs code of its own.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises no narrower class
        raise FreelunchError(f"{folder}: has no usable tokenizer: {first_line(error)}") from None


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash over everything that shapes the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_from_gguf(path: Path, dtype: Any) -> tuple[Any, Any]:
    """A model and its tokenizer from a GGUF file, with the weights dequantised.

    Raises:
        FreelunchError: transformers does not know the architecture, or the file lacks tensors.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True
        )
        read, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # tokenizers raises no narrower class
        raise FreelunchError(f"{path.name}: cannot be converted: {first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise FreelunchError(f"{path.name}: lacks {len(missing)} tensors of the model, first {missing[0]}")
    # what was read counts as quantised and refuses to be saved, dequantised as it is
    config = read.config
    vars(config).pop("quantization_config", None)
    vars(config).pop("_model_name_or_path", None)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    return model, tokenizer


def model_from_pickle(folder: Path, dtype: Any, where: str) -> Any:
    """The model of a directory with ``pytorch_model.bin`` files, under the names that transformers has for its tensors.

    They are read by torch's restricted unpickler (``weights_only``), which makes tensors and containers of tensors and
    runs nothing else.

    Raises:
        FreelunchError: there are no such files, they hold something else, or tensors are missing.
    """
    from transformers import AutoModelForCausalLM

    if not list(folder.glob(PICKLED)):
        raise FreelunchError(f"{where}: has no {PICKLED}; leave out `pickled` if it has safetensors")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=False, weights_only=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # torch raises UnpicklingError, transformers OSError and others
        raise FreelunchError(f"{where}: {PICKLED} cannot be converted: {first_line(error)}") from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise FreelunchError(f"{where}: {PICKLED} lacks {len(missing)} tensors of the model, first {missing[0]}")
    return model


def random_model(source: Random, dtype: Any, where: str) -> tuple[Any, Any]:
    """A randomly initialised model and a tokenizer of the 256 bytes and an end-of-text token.

    Raises:
        FreelunchError: see :func:`initialised`.
    """
    tokenizer = byte_tokenizer()
    return initialised(source.config, tokenizer, source.seed, dtype, where), tokenizer


def initialised(given: dict[str, Any], tokenizer: Any, seed: int, dtype: Any, where: str) -> Any:
    """A model with random weights.

    Args:
        given: Hugging Face config; ``where`` is the key of the config that it is below.

    Raises:
        FreelunchError: a key that the family's config does not have, a value that it refuses, or a vocabulary smaller
            than the tokenizer's.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    end = tokenizer.eos_token_id
    try:
        known = AutoConfig.for_model(given["model_type"])
    except (KeyError, ValueError) as error:
        raise FreelunchError(f"{where}.config.model_type: {str(error).splitlines()[0][:200]}") from None
    allowed = {*known.to_dict(), *known.attribute_map}
    for key in sorted(given.keys() - allowed):
        raise FreelunchError(f"{where}.config.{key}: unknown key; {suggest(key, allowed)}")
    size, least = given.get("vocab_size", known.vocab_size), len(tokenizer)
    if size < least:
        raise FreelunchError(f"{where}.config.vocab_size: must be {least}, the tokenizer's, or more (found {size})")
    try:
        config = AutoConfig.for_model(**given | {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None})
    except StrictDataclassError as error:
        reason = str(error).split(": ", 1)[-1]
        raise FreelunchError(f"{where}.config: {reason}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are the 256 bytes, and one that ends a text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: token for token, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model directory.

    Raises:
        FreelunchError: the file cannot be read, or holds something else.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FreelunchError(f"cannot read {path}: {error}") from None
    if not isinstance(raw, dict):
        raise FreelunchError(f"{path}: is not a JSON object")
    return raw


def train_bpe(texts: Iterable[str], size: int) -> Any:
    """A tokenizer of ``size`` entries: one that ends a text, the 256 bytes, and the most frequent pairs, joined.

    Words are split as for GPT-2. The same texts give the same tokenizer.

    Raises:
        FreelunchError: the texts have fewer pairs.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != size:
        raise FreelunchError(f"the text gives {found} tokens, {size} were asked for; use fewer, or more documents")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def token_bytes(tokenizer: Any) -> Tensor:
    """Bytes of text that each entry of a byte-level tokenizer stands for, ``[vocabulary]``."""
    import torch

    # the alphabet of such a tokenizer has one character for every byte
    return torch.tensor([len(token) for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])])
