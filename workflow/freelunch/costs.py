"""What a stage takes, from its spec and the shape of its model, before anything runs: operations, disk and memory.

A job is put together of kinds of work: it streams a model, prunes matrices, trains weights, computes logits. Operations
and files of its works add up; its memory is that of the largest, as a sum of the tensors that are held at one time.
docs/memory.md has these sums as formulas, and what was measured. Sizes such as those of batches are imported from the
code that uses them; none of it imports torch.

A stage has one function, registered with :func:`cost` for the class of its spec; those of classifiers are in
``vision.classifier_costs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

from freelunch.engine.accelerators import has_accelerator, product_bytes
from freelunch.errors import FreelunchError
from freelunch.evaluate.sizes import LARGEST, LOGITS, STATES, tokens_of, whole_bytes
from freelunch.plan import specs
from freelunch.plan.config import Config, TextTask, Train, ZeroShotTask
from freelunch.plan.facts import DTYPE_BYTES, Facts, facts_of
from freelunch.plan.spec import Spec
from freelunch.pruning.method import Method
from freelunch.pruning.refinements import Exact
from freelunch.recover.parametrizations import parse_parametrization
from freelunch.recover.schedule import VALIDATION_TOKENS, trial_steps, validation_steps
from freelunch.recover.windows import MATRICES, boundaries_to_keep, parse_window

PLAIN, NETWORK, HARNESS = 300 * 2**20, 512 * 2**20, 100 * 2**20
"""Bytes of a process that has torch; of one that runs a network, with transformers and a tokenizer; of lm-eval besides.
What libraries take on the way is in them."""
TOKENIZING = 200 * 2**20
"""What training a tokenizer and cutting its text takes besides."""
HOLES = 64 * 2**20
"""What C's allocator does not give back where many tensors come and go."""
ACCELERATOR = 2048 * 2**20
"""What CUDA's libraries and pinned batches take of the host's memory."""
SCATTERED = 1.05
"""Weights in training, with all that is kept of them, over their sum: allocators leave gaps between tensors."""
WHOLE_SPLIT = 350_000
"""Tokens that a split is taken to have where a task reads all of it: about as many as WikiText-2's test split."""
TRIALS = 5
"""Learning rates that ``auto`` tries, about."""
INPUTS = ("q", "o", "up", "down")
"""Matrices that between them read all inputs of a block: k and v read what q reads, gate what up does."""


@dataclass(frozen=True)
class Cost:
    """Of a stage run, or of a kind of work in it.

    Attributes:
        operations: arithmetic ones, a multiply-add counts as two.
        disk: bytes that stay.
        device: bytes that torch allocates where products are computed. Of a stage, where that is an accelerator: else
            they are the host's.
        host: bytes of the host's memory at the peak; those of a stage are what a cluster is asked for.
        mapped: bytes of mapped files of hidden states: they count as the process' own for as long as the host has
            room, and the system takes them back when it has not.
    """

    operations: float = 0.0
    disk: float = 0.0
    device: float = 0.0
    host: float = 0.0
    mapped: float = 0.0


def job(accelerator: bool, process: float, works: Iterable[Cost]) -> Cost:
    """Works one after the other in a process of so many bytes."""
    works = list(works)
    host = max(work.host + (0 if accelerator else work.device) for work in works)
    return Cost(
        sum(work.operations for work in works),
        sum(work.disk for work in works),
        max(work.device for work in works) if accelerator else 0.0,
        process + host + (ACCELERATOR if accelerator else 0),
        max(work.mapped for work in works),
    )


@singledispatch
def cost(spec: Spec, config: Config) -> Cost:
    """What one stage run takes on the machine that ``config.execution`` names.

    Raises:
        FreelunchError: no function is registered for the class of the spec.
    """
    raise FreelunchError(f"no function says what stage {spec.stage} takes; is its module imported?")


# --- models ----------------------------------------------------------------------------------------------------------


def forward_operations(facts: Facts, tokens: float, length: int) -> float:
    """Operations of one block's forward pass over sequences of ``length`` tokens."""
    return 2 * facts.block_parameters * tokens + 4 * tokens * length * facts.num_attention_heads * facts.head_dim


@dataclass(frozen=True)
class Model:
    """A model on a machine.

    Attributes:
        saved: bytes of a number in files, and of kept hidden states.
        computed: bytes of a number that products are computed of.
        stream_tokens: tokens per batch when it is streamed.
    """

    facts: Facts
    accelerator: bool
    saved: int
    computed: int
    stream_tokens: int

    @classmethod
    def of(cls, config: Config, spec: specs.ModelSpec) -> Model:
        """A model of the config, on the machine that its jobs run on."""
        facts, dtype, execution = facts_of(config, spec.model), spec.source.dtype, config.execution
        computed = product_bytes(dtype, execution.device, execution.products)
        accelerator = has_accelerator(execution.device)
        return cls(facts, accelerator, DTYPE_BYTES[dtype], computed, execution.stream_tokens)

    @property
    def embedding(self) -> int:
        """Weights of the embedding; of the head as many."""
        return self.facts.vocab_size * self.facts.hidden_size

    @property
    def largest(self) -> int:
        """Weights of the largest matrix of a block."""
        return max(rows * columns for rows, columns in self.facts.matrices.values())

    @property
    def columns(self) -> int:
        """Of the matrix with most of them."""
        return max(columns for _, columns in self.facts.matrices.values())

    @property
    def block(self) -> float:
        """Bytes of a block's weights."""
        return self.facts.block_parameters * self.computed

    @property
    def weights(self) -> int:
        """Weights of all blocks."""
        return self.facts.num_hidden_layers * self.facts.block_parameters

    @property
    def gram_entries(self) -> int:
        """Entries of the Gram matrices of a block."""
        return sum(self.facts.matrices[role][1] ** 2 for role in INPUTS)

    def kept(self, tokens: float) -> float:
        """Bytes of hidden states in files."""
        return tokens * self.facts.hidden_size * self.saved

    def states(self, tokens: float) -> float:
        """Bytes of hidden states in memory."""
        return tokens * self.facts.hidden_size * self.computed

    def forward(self, tokens: float, length: int, head: bool = False) -> float:
        """Operations of a forward pass through all blocks, and through the head."""
        blocks = self.facts.num_hidden_layers * forward_operations(self.facts, tokens, length)
        return blocks + (2 * tokens * self.embedding if head else 0)

    def batch(self, tokens: float) -> float:
        """Bytes of a batch that goes through a block: what the MLP makes of it at once, and states of its width."""
        return tokens * self.computed * (3 * self.facts.intermediate_size + 6 * self.facts.hidden_size)

    def collected(self, tokens: float) -> float:
        """The same where statistics are collected, whose sums are made of float64: the widest inputs and their squares,
        and, where products are of 16 bits, the inputs in float32."""
        widest = self.computed + 16 + (4 if self.computed < 4 else 0)
        return max(self.batch(tokens), tokens * (widest * self.columns + 6 * self.facts.hidden_size * self.computed))


# --- kinds of work ---------------------------------------------------------------------------------------------------


def reads(model: Model, weights: float, held: float = 0.0, host: float = 0.0, overlaid: bool = False) -> Cost:
    """Reads a tensor, once as it lies in its file and once as it is computed with, while others are ``held``.

    Where an accelerator does the latter, the page cache's copy is there besides; so are a mask and what it makes of
    a tensor of an overlaid model.
    """
    copies = model.saved * (2 if model.accelerator else 1)
    masked = 2 * model.saved + 2 if overlaid else 0
    return Cost(device=held + weights * model.computed, host=host + weights * (copies + masked))


def streams(
    model: Model, splits: Sequence[int], length: int, *, passes: float = 1.0, held: float = 0.0, host: float = 0.0,
    collects: bool = False, overlaid: bool = False,
) -> list[Cost]:  # fmt: skip
    """Reads every block and runs it on batches of sequences, so many ``passes``; ``held`` lies beside the block.

    Args:
        splits: how many sequences each has, of ``length`` tokens.
        collects: whether statistics of the inputs of matrices are.
    """
    tokens, batch = sum(splits) * length, min(max(1, model.stream_tokens // length), max(splits)) * length
    before = held + model.block - model.largest * model.computed
    activations = model.collected(batch) if collects else model.batch(batch)
    return [
        reads(model, model.largest, before, host, overlaid),  # the last of its matrices: the others are there
        Cost(passes * model.forward(tokens, length), device=held + model.block + activations, host=host),
    ]


def scores(
    model: Model, splits: Sequence[int], length: int, logits: int, states: float, *, passes: float = 1.0,
    overlaid: bool = False,
) -> list[Cost]:  # fmt: skip
    """Reads the embedding, streams the blocks, and computes so many logits at a time; ``states`` are on the host."""
    each = 8 if model.computed == 4 else 10  # as computed and in float32, and what the log-likelihood makes of them
    operations = passes * 2 * sum(splits) * length * model.embedding
    return [
        reads(model, model.embedding, host=states),
        *streams(model, splits, length, passes=passes, host=states, overlaid=overlaid),
        Cost(operations, device=model.embedding * model.computed + logits * each, host=states),
    ]


def prunes(model: Model, method: Method, held: float = 0.0) -> Cost:
    """Prunes all matrices one by one, and writes masks, and weights where the method changes them, by block."""
    facts, kept = model.facts, 1 - method.pattern.sparsity
    shapes, square = facts.matrices.values(), model.columns**2
    memory = [30.0 * model.largest]  # float32 weights, scores, and what is made of them on the way
    operations = sum(part.operations(*shape, kept) for part in method.refinements for shape in shapes)
    if method.needs_gram:
        operations += sum(3 * rows * columns**2 for rows, columns in shapes)
        operations += sum(facts.matrices[role][1] ** 3 for role in INPUTS)
        # the Gram matrix, its damped copy, and three factors on the way to that of the inverse; then two of them
        memory = [22.0 * square + 8 * model.largest, 8.0 * square + memory[0]]
        memory += [16.0 * square + max(part.memory(*shape, kept) for shape in shapes) for part in method.refinements]
    written = facts.block_parameters * (1 / 8 + (model.saved if method.changes_weights else 0))
    blocks = facts.num_hidden_layers
    return Cost(blocks * operations, blocks * written, device=held + max(memory), host=written)


def trains(
    model: Model, training: specs.Training, data: specs.CalibrationSpec | Train, validation_tokens: int,
    weights: float, blocks: float, *, held: float = 0.0, per_token: float = 0.0, logits: float = 0.0, more: float = 0.0,
) -> list[Cost]:  # fmt: skip
    """Trains ``weights`` at once, and validates what would be saved of them.

    Args:
        data: what has the numbers of sequences and their length.
        validation_tokens: of a batch, at most.
        blocks: whose activations are kept for the backward pass.
        held: bytes of weights that are not trained.
        per_token: bytes of a batch besides activations, and ``logits``, of one copy of its logits.
        more: forward passes over the sequences to train on, besides those of training and validation.
    """
    width, inner, computed = model.facts.hidden_size, model.facts.intermediate_size, model.computed
    step = -(-training.batch_size // training.accumulation) * data.length
    validated = min(max(1, validation_tokens // data.length), data.validation_sequences) * data.length
    stepping, validating = (held + SCATTERED * weights * each for each in weight_bytes(model, training))
    # what the backward pass needs of every block, and gradients of the widest tensors of one
    activations = max(1.0, blocks) * (4 * computed * inner + 40 * width) + 3 * computed * inner
    steps = training.epochs * -(-data.sequences // training.batch_size)
    validation = data.validation_sequences / data.sequences
    # a backward pass counts as two; the initial state is validated too
    passes = 3 * training.epochs + (1 + len(validation_steps(steps, training.epochs))) * validation
    if training.learning_rate == "auto":
        passes += TRIALS * (3 * training.epochs * trial_steps(steps) / steps + validation)
    per_pass = model.forward(data.sequences * data.length, data.length, head=logits > 0)
    return [
        Cost((passes + more) * per_pass, device=stepping + step * (activations + per_token + 3 * logits)),
        Cost(device=validating + model.batch(validated) + validated * (per_token + 2 * logits)),
    ]


def weight_bytes(model: Model, training: specs.Training) -> tuple[float, float]:
    """Bytes for each weight in training: in a step, and while what would be saved is validated."""
    cast = 2 if model.computed < 4 else 0  # autocast keeps what it rounded
    parts = parse_parametrization(training.parametrization)
    if any(part.whole for part in parts):
        # float32 weights and what the optimiser keeps, the mask, the best state, initial weights for the next rate
        searched = 4 if training.learning_rate == "auto" else 0
        held = 4 + (8 if training.optimizer == "adamw" else 4) + 1 + model.saved + cast + searched
        return held + 4, held + model.saved + 4  # gradients; the state at hand, rounded and then computed with
    # frozen weights, the mask, the weight that training computes with and its gradient, two states
    low_rank = model.computed + 1 + (10 if any(part.matrices for part in parts) else 0) + 2 * model.saved
    return low_rank, low_rank


# --- stages ----------------------------------------------------------------------------------------------------------

cost.register(specs.DataSpec, lambda spec, config: Cost(host=PLAIN))
cost.register(specs.QuestionsSpec, lambda spec, config: Cost(host=NETWORK))


@cost.register
def _model(spec: specs.ModelSpec, config: Config) -> Cost:
    """What is converted is held whole; what is linked is not looked into."""
    model, source = Model.of(config, spec), spec.source
    weights, file = model.facts.parameters, model.facts.parameters * model.saved
    if (train := source.train) is not None:
        works = trains(
            model, specs.training_of(train), train, VALIDATION_TOKENS["pretrain"], weights,
            model.facts.num_hidden_layers, logits=4.0 * model.facts.vocab_size,
            more=2 * train.validation_sequences / train.sequences,  # at the end, as many windows of either split
        )  # fmt: skip
        return job(model.accelerator, NETWORK + TOKENIZING, [*works, Cost(disk=file)])
    if source.wheel is not None:
        return Cost(disk=file, host=NETWORK + weights + 2 * file)  # quantised, as read and as written
    if source.random is not None:
        # a head that is the embedding is made all the same
        return Cost(disk=file, host=NETWORK + (model.weights + 2 * model.embedding) * model.saved)
    if source.hub is not None and source.hub.pickled:
        return Cost(disk=file, host=NETWORK + 2 * file)
    return Cost(host=NETWORK)


def _tokens(calibration: specs.CalibrationSpec) -> int:
    return (calibration.sequences + calibration.validation_sequences) * calibration.length


@cost.register
def _calibration(spec: specs.CalibrationSpec, config: Config) -> Cost:
    return Cost(disk=4 * _tokens(spec), host=NETWORK - HOLES + 16 * _tokens(spec))


@cost.register
def _dense(spec: specs.DenseSpec, config: Config) -> Cost:
    crops = spec.calibration
    model, tokens = Model.of(config, crops.model), _tokens(crops)
    each = model.kept(tokens)
    kept = boundaries_to_keep(model.facts.num_hidden_layers, int(each), int(config.dense.max_gib * 2**30))
    works = streams(model, (crops.sequences, crops.validation_sequences), crops.length, collects=True)
    files = Cost(disk=len(kept) * each, mapped=2 * each)  # the states before a block and behind it
    return job(model.accelerator, NETWORK + HOLES, [reads(model, model.embedding), *works, files])


@cost.register
def _grams(spec: specs.GramsSpec, config: Config) -> Cost:
    crops = spec.dense.calibration
    model, tokens = Model.of(config, crops.model), crops.sequences * crops.length
    blocks, grams = model.facts.num_hidden_layers, 4.0 * model.gram_entries
    held = min(2, blocks) * grams  # those of the block before are let go of when a block's are there
    works = streams(model, [crops.sequences], crops.length, held=held, collects=True)
    written = held if model.accelerator else 0.0
    sums = Cost(2.0 * blocks * tokens * model.gram_entries, blocks * grams, held, written, 2 * model.kept(tokens))
    return job(model.accelerator, NETWORK + HOLES, [*works, sums])


@cost.register
def _pruned(spec: specs.PrunedSpec, config: Config) -> Cost:
    model = Model.of(config, spec.base)
    process = PLAIN if spec.prune_inputs == "dense" else NETWORK
    return job(model.accelerator, process, _prunes(model, spec))


def _prunes(model: Model, spec: specs.PrunedSpec) -> list[Cost]:
    """With inputs that are not dense, streams the pruned model twice: to collect statistics, and to go on."""
    crops = spec.dense.calibration
    if spec.prune_inputs == "dense":
        return [prunes(model, spec.method)]
    # statistics are there for all matrices of a block, with what was factorised of them
    held = 8.0 * model.gram_entries if spec.method.needs_gram else 0.0
    works = streams(model, [crops.sequences], crops.length, passes=2.0, held=held, collects=True, overlaid=True)
    return [prunes(model, spec.method, held), *works, Cost(mapped=2 * model.kept(crops.sequences * crops.length))]


@cost.register
def _reconstructed(spec: specs.ReconstructedSpec, config: Config) -> Cost:
    """Computes targets, and trains windows or solves for them; prunes, where that is done on the way."""
    crops = spec.dense.calibration
    model, splits = Model.of(config, crops.model), [crops.sequences, crops.validation_sequences]
    facts, halves, inside = model.facts, parse_window(spec.window), spec.window in MATRICES
    weights, blocks = _window(spec, model)
    # passes for what is not in the dense cache: one for every matrix, which ends there; one to the middle of a block
    passes = 3.0 if inside else 1.0 if halves == 1 else 0.0
    if spec.closed_form:
        exact, kept, square = Exact(), 1 - spec.pruned.method.pattern.sparsity, model.columns**2
        shapes, before = facts.matrices.values(), 0.0
        operations = facts.num_hidden_layers * sum(exact.operations(*shape, kept) for shape in shapes)
        # float32 weights; the Gram matrix, a centred and a damped copy and a factor; then the systems of some rows
        solved = 8.0 * square + max(exact.memory(*shape, kept) for shape in shapes)
        works = [Cost(operations, device=max(12.0 * weights + 16.0 * square, solved))]
        splits = [crops.validation_sequences]  # what it is fitted to are the Gram matrices
    else:
        passes += 2.0 * (spec.flow != "dense")  # the student goes through every window too
        before = max(0.0, blocks - 1) * model.block
        works = trains(
            model, spec.training, crops, VALIDATION_TOKENS["reconstruct"], weights, blocks,
            held=blocks * model.block - weights * model.computed,
            per_token=16.0 * facts.hidden_size,  # inputs and targets in float32, and those that are read ahead
        )  # fmt: skip
    works += streams(model, splits, crops.length, passes=passes, held=before, overlaid=not spec.closed_form)
    # files of inputs and targets: inside a block they have the digits of products
    tokens = sum(splits) * crops.length
    widest = max(rows + columns for rows, columns in facts.matrices.values())
    behind = tokens * widest * model.computed if inside else model.states(tokens) if halves == 1 else model.kept(tokens)
    works.append(Cost(disk=model.weights * model.saved, mapped=model.kept(tokens) + behind))
    works += _prunes(model, spec.pruned) if spec.interleaved else []
    return job(model.accelerator, NETWORK + HOLES, works)


def _window(spec: specs.ReconstructedSpec, model: Model) -> tuple[float, float]:
    """Weights of the largest window, and the blocks that it lies in."""
    facts, halves = model.facts, parse_window(spec.window)
    if spec.window in MATRICES:
        pair = sum(rows * columns for rows, columns in (facts.matrices["k"], facts.matrices["up"]))
        return pair if spec.window == "key_up" else model.largest, 1
    if halves == 1:
        mlp = facts.mlp_matrices * facts.hidden_size * facts.intermediate_size
        return max(facts.block_parameters - mlp, mlp), 1
    blocks = min(halves // 2 if halves else facts.num_hidden_layers, facts.num_hidden_layers)
    return blocks * facts.block_parameters, blocks


@cost.register
def _shard(spec: specs.ShardSpec, config: Config) -> Cost:
    whole = _reconstructed(spec.reconstructed, config)
    return replace(whole, disk=whole.disk / spec.shards, operations=whole.operations / spec.shards)


@cost.register
def _retrained(spec: specs.RetrainedSpec, config: Config) -> Cost:
    """All blocks in training, with the embedding and the head beside them."""
    crops, training, recomputes = spec.calibration, spec.training, config.execution.checkpointing
    model = Model.of(config, crops.model)
    facts = model.facts
    works = trains(
        model, training, crops, VALIDATION_TOKENS["retrain"], model.weights,
        1 if recomputes else facts.num_hidden_layers,
        held=(1 if facts.tie_word_embeddings else 2) * model.embedding * model.computed,
        per_token=4.0 * facts.num_hidden_layers * facts.hidden_size,  # what blocks are recomputed from
        logits=4.0 * facts.vocab_size * (2 if spec.dense else 1), more=float(training.epochs if recomputes else 0),
    )  # fmt: skip
    file = Cost(disk=model.weights * model.saved)
    return job(model.accelerator, NETWORK + HOLES, [reads(model, model.embedding), *works, file])


@cost.register
def _repaired(spec: specs.RepairedSpec, config: Config) -> Cost:
    """Products of the dense and of the pruned weights with the covariance of the inputs."""
    model = Model.of(config, spec.base)
    facts = model.facts
    operations = facts.num_hidden_layers * sum(4.0 * rows * columns**2 for rows, columns in facts.matrices.values())
    # float32 dense, pruned and scaled weights and what is made of them; the Gram matrix, and a covariance in float64
    device = 16.0 * model.largest + 16.0 * model.columns**2
    written = model.saved * (facts.block_parameters + 2.0 * model.largest)
    return job(model.accelerator, NETWORK, [Cost(operations, model.weights * model.saved, device, written)])


@cost.register
def _export(spec: specs.ExportSpec, config: Config) -> Cost:
    """A tensor as read and as written; an embedding and two blocks to compare; all in the host's memory."""
    model = Model.of(config, spec.subject.base)
    tensor, compared = max(model.embedding, model.largest), model.embedding + 2 * model.facts.block_parameters
    return Cost(disk=model.facts.parameters * model.saved, host=NETWORK + 8 * tensor + 4 * compared)


@cost.register
def _evaluation(spec: specs.EvaluationSpec, config: Config) -> Cost:
    model, overlaid = Model.of(config, spec.base), bool(spec.overlays)
    texts = [task for task in spec.tasks if isinstance(task, TextTask)]
    asked = [task for task in spec.tasks if isinstance(task, ZeroShotTask)]
    read = [task for task in texts if task.metric == "perplexity"]
    compared = [task for task in texts if task.metric == "drift" and overlaid]
    # hidden states of all texts, and of drifts those of both networks
    states, both = (model.states(sum(sum(_splits(task)) * task.length for task in part)) for part in (read, compared))
    both *= 2
    works = [Cost()]
    for task in texts:
        if task in read:
            logits = task.length * model.facts.vocab_size
            works += scores(model, _splits(task), task.length, logits, states, overlaid=overlaid)
        elif task in compared:
            # the dense block, and the other one on its own states and on dense ones; float64 states of a sequence
            held = model.block + 32.0 * task.length * model.facts.hidden_size
            works.append(reads(model, model.embedding, host=both))
            works += streams(model, _splits(task), task.length, passes=3.0, held=held, host=both, overlaid=True)
    works += [work for question in asked for work in _zero_shot(config, model, question)]
    return job(model.accelerator, NETWORK + (HARNESS if asked else 0), works)


def _splits(task: TextTask) -> list[int]:
    """Sequences of every split that a task reads."""
    return [task.sequences or WHOLE_SPLIT // task.length] * len(task.splits)


def _zero_shot(config: Config, model: Model, task: ZeroShotTask) -> Iterator[Cost]:
    """A whole model, or a streamed one; ``auto`` on an accelerator needs the memory of the latter."""
    chosen, stream_tokens = config.execution.zero_shot, config.execution.stream_tokens
    tokens = sum(tokens_of(name, task.limit, chosen == "streaming") for name in task.tasks)
    # a streamed head reads a few tokens of each sequence
    yield Cost(model.forward(tokens, 100, head=chosen != "streaming"))
    whole = whole_bytes(model.facts, model.computed, stream_tokens)
    if chosen == "whole" or (chosen == "auto" and not model.accelerator and whole <= LARGEST):
        # on its way to an accelerator the host holds a block or so
        read = model.facts.parameters * model.computed / model.facts.num_hidden_layers
        yield Cost(device=whole, host=read if model.accelerator else 0.0)
    else:
        states, logits = min(STATES, model.states(tokens)), min(LOGITS, tokens * model.facts.vocab_size)
        yield from scores(model, [1], max(stream_tokens, 1024), logits, states, passes=0.0)
