"""Models trained from random weights: seeded, resumed, measured, and good for every stage after them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from freelunch.errors import FreelunchError
from freelunch.inputs.calibration import sample
from freelunch.inputs.documents import read_documents
from freelunch.inputs.models import initialised, token_bytes, train_bpe
from freelunch.plan.config import PerplexityTask, Train, parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.specs import EvaluationSpec, ExportSpec, ModelSpec, ReconstructedSpec, training_of
from freelunch.recover.retrain import pretrain
from freelunch.report.html import job, work
from freelunch.results import checkpoint
from freelunch.results.artifacts import Artifact, checksum
from freelunch.results.code import sources
from stage_runs import prepare, run, tiny_config, tiny_plan

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "config": CONFIG, "data": "documents", "sequences": 40, "validation_sequences": 6, "length": 32, "batch_size": 8,
    "epochs": 2, "learning_rate": 1e-2, "schedule": "cosine", "weight_decay": 0.1, "clip": 1.0,
}  # fmt: skip
STEPS = 10


def planned(dtype: str = "bfloat16", **changes: Any) -> EvaluationSpec:
    """The last run of the tiny suite on a model that is trained."""
    raw = tiny_config()
    raw["models"] = {"trained": {"train": TRAIN | changes, "dtype": dtype}}
    axes = {"model": "trained", "sequences": 8, "length": 32, "criterion": "wanda", "pattern": "2:4", "window": "block"}
    raw["suites"]["tiny"]["defaults"] |= axes
    raw["suites"]["tiny"]["runs"] = [{}]
    tasks = [{"data": "documents", "splits": ["calibration", "validation"], "length": 32, "sequences": 6}]
    raw["suites"]["tiny"]["evaluate"] = tasks
    return make_plan(parse_config(raw)).runs["tiny"][-1].evaluation


def trained(root: Path, **changes: Any) -> Artifact:
    base = planned(**changes).base
    prepare(base, root)
    return run(base, root)


def contents(artifact: Artifact) -> dict[str, str]:
    assert sorted(path.name for path in artifact.folder.iterdir()) == sorted([*artifact.files, "manifest.json"])
    return {name: checksum(artifact.file(name)) for name in artifact.files}


def told(artifact: Artifact) -> dict[str, Any]:
    """All of the manifest's numbers that another job must give too."""
    found = {key: artifact.manifest[key] for key in ("training", "training_tokens", "measured", "tokenizer")}
    found["training"] = {key: value for key, value in found["training"].items() if key != "seconds"}
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model and its data."""
    folder = tmp_path_factory.mktemp("trained")
    trained(folder)
    return folder


@pytest.fixture
def model(root: Path) -> Artifact:
    spec = planned().base
    return Artifact(root / spec.folder, spec)


def test_the_seed_decides_the_bits(model: Artifact, tmp_path: Path) -> None:
    again, other = trained(tmp_path), trained(tmp_path, seed=1)
    assert contents(again) == contents(model) and told(again) == told(model)
    name = "model.safetensors"
    assert contents(other)[name] != contents(model)[name] and other.folder != again.folder
    assert contents(other)["tokenizer.json"] == contents(model)["tokenizer.json"]  # the text decides, not its order


def test_it_learns_and_says_what_it_did(model: Artifact) -> None:
    losses = model.manifest["training"]["losses"]
    assert losses[0] == pytest.approx(math.log(300), abs=0.1) and min(losses) < losses[0] - 0.2
    assert model.manifest["training"]["steps"] == STEPS and model.manifest["training_tokens"] == 2 * 40 * 32
    assert model.manifest["resumed_at"] == 0 and model.manifest["model_revision"] == "seed 0"
    loaded = AutoModelForCausalLM.from_pretrained(model.folder, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    count = sum(weight.numel() for weight in loaded.parameters())
    assert model.manifest["parameters"] == count == model.manifest["training"]["trainable_parameters"]
    untied = pretrained_names(tie_word_embeddings=False)
    assert untied - pretrained_names() == {"lm_head.weight"}
    assert pretrained_names() == {name for name, _ in loaded.named_parameters()}


def test_the_report_says_what_training_took(model: Artifact) -> None:
    done = job("models", model.manifest)
    assert done["tokens"] == model.manifest["training_tokens"] and done["seconds"] == model.manifest["train_seconds"]
    assert work([done]).frame["Tokens per second"][0] == f"{done['tokens'] / done['seconds']:,.0f}"


def pretrained_names(**changes: Any) -> set[str]:
    """What a single step trains."""
    train = Train(**TRAIN | {"config": CONFIG | changes, "epochs": 1, "sequences": 2, "batch_size": 2})
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    tokenizer = train_bpe([TEXT], 300)
    network = initialised(train.config, tokenizer, 0, torch.float32, "x")
    crops = {"calibration": tokens, "validation": tokens}
    return set(pretrain(network, crops, training_of(train), torch.float32, torch.float32, "x").tensors)


def test_measured_numbers_are_those_of_an_evaluation(model: Artifact, root: Path) -> None:
    """Of the stage, to the last bit; and of the whole model, loaded from its folder."""
    base = planned().base
    assert base.data is not None
    tasks = (PerplexityTask(data="documents", splits=("calibration", "validation"), length=32, sequences=6),)
    artifact = run(EvaluationSpec(subject=base, data=(base.data,), tasks=tasks), root)
    metrics = {each["split"]: each for each in json.loads(artifact.file("metrics.json").read_text())}
    loaded = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    data = Artifact(root / base.data.folder, base.data)
    for split, found in model.manifest["measured"].items():
        assert found["perplexity"] == metrics[split]["value"] and found["tokens"] == metrics[split]["tokens"] == 6 * 31
        text = "\n\n".join(document.text for document in read_documents(data.file(f"{split}.jsonl")))
        windows = torch.tensor(tokenizer(text)["input_ids"][: 6 * 32]).view(6, 32)
        with torch.no_grad():
            nats = [loaded(row[None], labels=row[None]).loss.item() for row in windows]
        assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / 6), rel=2e-2)
        assert text.isascii()
        size = sum(len(tokenizer.decode([token])) for row in windows for token in row[1:])
        assert found["bits_per_byte"] == pytest.approx(sum(nats) * 31 / math.log(2) / size, rel=1e-2)
    assert model.manifest["measured"].keys() == {"calibration", "validation"}


@pytest.mark.parametrize("saves", [[1], [4, 3], [STEPS - 1]], ids=str)
def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(
    saves: list[int], model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", -1.0)
    real = checkpoint.Checkpoint.save
    spec = planned().base
    prepare(spec, tmp_path)
    for count in saves:
        done: list[int] = []

        def save(self: Any, tensors: Any, about: Any, done: list[int] = done, count: int = count) -> None:
            real(self, tensors, about)
            done.append(about["step"])
            if len(done) == count:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.Checkpoint, "save", save)
            with pytest.raises(KeyboardInterrupt):
                run(spec, tmp_path)
        left = sorted(path.name for path in (tmp_path / spec.folder).iterdir())
        assert left == [f"checkpoint-{done[-1]}.safetensors", "checkpoint.json"]
    again = run(spec, tmp_path)
    assert again.manifest["resumed_at"] == sum(saves)
    assert contents(again) == contents(model) and told(again) == told(model)


def test_a_training_that_diverges_stops_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(FreelunchError) as error:
        trained(tmp_path, learning_rate=1e30, clip=0)
    message = str(error.value)
    assert message.startswith("models.trained.train, step ") and "loss is" in message and "\n" not in message
    assert not (tmp_path / planned(learning_rate=1e30, clip=0).base.manifest).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": CONFIG | {"num_hiden_layers": 2}}, r"\.config\.num_hiden_layers: unknown key; did you mean 'num_h"),
        ({"config": CONFIG | {"model_type": "lama"}}, r"\.config\.model_type: "),
        ({"config": CONFIG | {"head_dim": 7}}, r"\.config: RoPE requires an even rotary dimension"),
        ({"config": CONFIG | {"vocab_size": 50000}}, r": the text gives \d+ tokens, 50000 were asked for"),
        ({"sequences": 5000}, r": data\.documents \(calibration\) has \d+ tokens, 5000 sequences"),
        ({"validation_sequences": 5000}, r": data\.documents \(calibration\): has \d+ tokens, 5000 windows"),
    ],
)
def test_what_shows_only_in_the_job_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FreelunchError, match=rf"^models\.trained\.train{message}") as error:
        trained(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_one_step_is_that_of_adamw_with_decay_of_matrices_alone(model: Artifact, root: Path) -> None:
    rate, decay = 1e-3, 0.3
    changes = {"learning_rate": rate, "weight_decay": decay, "epochs": 1, "clip": 0.0, "warmup": 0.0}
    train = Train(**TRAIN | changes | {"sequences": 4, "batch_size": 4})
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    data = planned().base.data
    assert data is not None
    documents = read_documents(Artifact(root / data.folder, data).file("calibration.jsonl"))
    crops = sample(documents, tokenizer, sequences=4, length=32, sampling="packed", seed=0).tokens
    fresh = initialised(CONFIG, tokenizer, 0, torch.float32, "x")
    fresh(input_ids=crops.long(), labels=crops.long()).loss.backward()
    before = {name: (weight.detach().clone(), weight.grad) for name, weight in fresh.named_parameters()}
    start = initialised(CONFIG, tokenizer, 0, torch.float32, "x")
    tokens, training = {"calibration": crops, "validation": crops}, training_of(train)
    found = pretrain(start, tokens, training, torch.float32, torch.float32, "x", None, train.weight_decay)
    assert found.fit.best_at == 1
    for name, (weight, gradient) in before.items():
        shrunk = weight * (1 - rate * (decay if weight.ndim > 1 else 0))
        # the first moments are those of one gradient, so a step has the sign of the gradient alone
        expected = shrunk - rate * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-5
        torch.testing.assert_close(found.tensors[name][sure], expected[sure], rtol=0, atol=1e-5)


# --- the tokenizer ---------------------------------------------------------------------------------------------------

TEXT = (
    """the cat sat on the mat; the other cat sat on that hat, über 🙂 and the rest of the hats sat there too
while seventeen quick brown foxes jumped over lazy dogs beneath crumbling bridges, juggling flaming torches\n\n"""
    * 3
)


def literal_merges(words: list[str], count: int) -> list[str]:
    """The most frequent pairs, joined one after the other."""
    split, found = [list(word) for word in words], []
    for _ in range(count):
        pairs = Counter(pair for word in split for pair in pairwise(word))
        (best, most), (_, second) = pairs.most_common(2)
        assert most > second, "a tie, which the definition leaves open"
        found.append("".join(best))
        for word in split:
            for at in range(len(word) - 1, 0, -1):
                if (word[at - 1], word[at]) == best:
                    word[at - 1 : at + 1] = ["".join(best)]
    return found


def test_the_most_frequent_pairs_become_tokens() -> None:
    text = " abc" * 9 + " bc" * 4 + " ac" * 3 + " cab" * 2
    tokenizer = train_bpe([text], 257 + 4)
    vocabulary = tokenizer.get_vocab()
    newest = sorted(vocabulary, key=vocabulary.get)[257:]
    assert newest == literal_merges([f"Ġ{word}" for word in text.split()], 4)
    assert len(tokenizer) == 261 and tokenizer.eos_token_id == 0


def test_any_text_comes_back_and_bytes_are_counted() -> None:
    tokenizer = train_bpe([TEXT], 290)
    for text in (TEXT, "Über naïve 日本語 🙂:\n\n  two  spaces\tand a tab . End", "<|endoftext|>", ""):
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokens) == text
        assert int(token_bytes(tokenizer)[torch.tensor(tokens, dtype=torch.long)].sum()) == len(text.encode())


def test_the_same_text_gives_the_same_tokenizer_in_another_process() -> None:
    code = (
        f"from freelunch.inputs.models import train_bpe; print(train_bpe([{TEXT!r}], 310).backend_tokenizer.to_str())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == train_bpe([TEXT], 310).backend_tokenizer.to_str()


# --- what follows ----------------------------------------------------------------------------------------------------


def test_every_stage_works_on_it(root: Path) -> None:
    evaluation = planned()
    prepare(evaluation, root)
    metrics = {each["split"]: each for each in json.loads(run(evaluation, root).file("metrics.json").read_text())}
    subject = evaluation.subject
    assert isinstance(subject, ReconstructedSpec)
    prepare(ExportSpec(subject=subject), root)
    exported = AutoModelForCausalLM.from_pretrained(run(ExportSpec(subject=subject), root).folder)
    weight = exported.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert ((weight.view(32, -1, 4) != 0).sum(-1) == 2).all()
    measured = Artifact(root / evaluation.base.folder, evaluation.base).manifest["measured"]
    assert measured["validation"]["perplexity"] != metrics["validation"]["value"] < 310


def test_its_code_counts_only_where_one_is_trained() -> None:
    only = {"train_model.py", "retrain.py", "trainable.py"}
    assert not only & {file.name for file in sources("stages.models")}
    modules = planned().base.modules
    names = {Path(file).name for module in modules for file in sources(module)}
    assert only | {"parametrizations.py"} <= names
    random = tiny_plan().runs["tiny"][0].evaluation.base
    assert isinstance(random, ModelSpec) and random.modules == [] and not random.resumed
