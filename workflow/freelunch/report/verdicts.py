"""Verdicts: what the rows of a suite say of every claim, by an explicit rule; ``text.yaml`` has the rules in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.report import compare, studies, text
from freelunch.report.compare import AXES, EXACT, PRUNED, REPLICA, WHERE, Estimate, Group, Setting
from freelunch.report.studies import ACCUMULATED, LOCAL, PANEL, Sizes
from freelunch.report.views import RULES, call

Outcome = Literal["holds", "holds partly", "does not hold here", "not testable here"]
HOLDS: Outcome = "holds"
PARTLY: Outcome = "holds partly"
FAILS: Outcome = "does not hold here"
UNTESTED: Outcome = "not testable here"

ERRORS = 2.0
"""Standard errors that a difference must exceed to count: with few seeds, one is often exceeded by chance."""
NEARLY = 0.1
"""Share of what recovery gains, in log-perplexity over not recovering, that counts as little."""
HALF = 0.5
"""Share of the full gain from which few parameters do most of the work."""
GROWTH = 2.0
"""Accumulated over local drift from which errors accumulate: half of the drift at the end came from blocks before."""
SAME = 0.05
"""Share below which peak memories count as equal, in both directions: what a process takes varies by some percent."""
TIMES = 10.0
"""The paper's factor of tokens."""
EQUAL = 1.25
"""Token counts within this factor count as equal: early stopping and rounding to batches move them."""
HALVES, SINGLE = "attention_mlp", ("matrix", EXACT)
"""``key_up`` is neither: it holds two matrices and trains them across the attention between them."""
SIMPLE, COMPLEX, FLOOR = "wanda", ("sparsegpt", "ria"), "random"
"""Criteria that take more than a weight and the norm of its input; one that nobody would choose."""
_THRESHOLDS = {"errors": ERRORS, "nearly": NEARLY, "half": HALF, "growth": GROWTH, "same": SAME, "times": TIMES,
               "equal": EQUAL, "most": 1 - NEARLY}  # fmt: skip


class Case(NamedTuple):
    """One comparison that tests a claim: where it was made, how it came out, the numbers, and over how many seeds."""

    where: str
    outcome: Outcome
    numbers: str
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """A claim with its outcome over all cases, and why: what is missing, or how the cases came out."""

    name: str
    outcome: Outcome
    reason: str
    cases: tuple[Case, ...] = ()

    @property
    def claim(self) -> str:
        return str(text.TEXT["claims"][self.name]["claim"])

    @property
    def source(self) -> str:
        return str(text.TEXT["claims"][self.name].get("source", text.SOURCE))

    @property
    def rule(self) -> str:
        return str(text.TEXT["claims"][self.name]["rule"]).format(**_THRESHOLDS)


def verdicts(rows: DataFrame) -> list[Verdict]:
    """A verdict on every claim, in the order of ``text.yaml``; none is left out because the rows cannot test it."""
    return [verdict(name, rows) for name in text.TEXT["claims"] if name in RULES]


def verdict(name: str, rows: DataFrame) -> Verdict:
    """The claim holds (or does not) if it does in every case; else it holds partly."""
    try:
        cases = list(call(RULES[name], f"claim {name}", rows))
    except FreelunchError as error:
        return Verdict(name, UNTESTED, f"{error}.")
    if not cases:
        return Verdict(name, UNTESTED, f"This needs {text.TEXT['claims'][name]['needs']}.")
    counts = Counter(case.outcome for case in cases)
    tally = ", ".join(f"{outcome} in {counts[outcome]}" for outcome in (HOLDS, PARTLY, FAILS) if counts[outcome])
    seeds = sorted({case.seeds for case in cases})
    words = (
        "one seed: differences have no error"
        if seeds == [1]
        else f"{' to '.join(map(str, seeds[:: len(seeds) - 1 or 1]))} seeds"
    )
    return Verdict(name, combined(counts), f"{text.counted(len(cases), 'comparison')}: {tally}; {words}.", tuple(cases))


def combined(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome that all cases share; where they differ a claim holds partly."""
    distinct = set(outcomes)
    return distinct.pop() if len(distinct) == 1 else PARTLY


# --- differences of log-perplexity, seed by seed ---------------------------------------------------------------------


class Difference(NamedTuple):
    """A mean over seeds and its standard error, NaN where there is one seed."""

    value: float
    stderr: float
    seeds: int

    @property
    def positive(self) -> bool:
        """Whether it is above zero by more than :data:`ERRORS` standard errors; with one seed, at all."""
        return self.value > 0 and not self.value <= ERRORS * self.stderr


def over(values: Sequence[float]) -> Difference:
    """The mean of one value per seed."""
    array = np.asarray(values, float)
    finite = len(array) > 1 and bool(np.isfinite(array).all())
    stderr = float(array.std(ddof=1)) / math.sqrt(len(array)) if finite else math.nan
    return Difference(float(array.mean()), stderr, len(array))


def apart(first: Difference, second: Difference) -> Difference:
    """First minus second, where their seeds have nothing in common."""
    stderr = math.hypot(first.stderr, second.stderr)
    return Difference(first.value - second.value, stderr, min(first.seeds, second.seeds))


def logs(runs: DataFrame) -> Series[float]:
    """Log-perplexity by seed; what diverged (NaN) counts as infinite. The dense model's seed is -1."""
    seeds = runs["seed"].fillna(-1).astype(int).to_numpy()
    values = runs["value"].to_numpy(float)
    return pd.Series(np.log(np.where(np.isnan(values), math.inf, values)), index=seeds).groupby(level=0).mean()


def between(first: DataFrame, second: DataFrame) -> Difference | None:
    """Log-perplexity of the first runs minus that of the second, seed by seed; None if no seed is common."""
    one, other = logs(first), logs(second)
    common = one.index.intersection(other.index)
    with np.errstate(invalid="ignore"):
        return over(list(one[common].to_numpy() - other[common].to_numpy())) if len(common) else None


def spreads(settings: Iterable[DataFrame]) -> dict[int, float]:
    """By seed, the highest log-perplexity of some settings minus the lowest, at the seeds that all have."""
    table = pd.concat([logs(runs) for runs in settings], axis=1, join="inner")
    with np.errstate(invalid="ignore"):
        return {int(str(seed)): float(row.max() - row.min()) for seed, row in table.iterrows()}


def ranked(settings: Mapping[str, DataFrame]) -> list[str]:
    """Settings by their mean log-perplexity, the lowest first."""
    return sorted(settings, key=lambda name: float(logs(settings[name]).mean()))


# --- words -----------------------------------------------------------------------------------------------------------


def titles(settings: Sequence[Setting], aside: str = "") -> list[str]:
    """A name for each setting: criterion and pattern, and every axis in which the settings differ, but for one."""
    differing = [axis for axis in compare.varying(settings) if axis not in ("core", "extras", "calibration_tokens")]
    axes = [axis for axis in dict.fromkeys(("criterion", "pattern", *differing)) if axis != aside]
    return [", ".join(text.described(axis, setting[axis]) for axis in axes if not pd.isna(setting.get(axis)))
            for setting in settings]  # fmt: skip


def said(mean: Estimate | None) -> str:
    """A number with three digits, and its error over seeds."""
    if mean is None:
        return "not measured"
    return text.printed(mean.value) + (f" ± {mean.stderr:.2g}" if mean.runs > 1 and mean.stderr == mean.stderr else "")


def listed(axis: str, settings: Mapping[str, DataFrame]) -> str:
    """``Matrix 43.1 ± 0.2, Block 29.9``."""
    return ", ".join(f"{text.value(axis, name)} {said(compare.summary(runs))}" for name, runs in settings.items())


def outcome(*held: bool) -> Outcome:
    """Holds if all do, partly if one does."""
    return HOLDS if all(held) else PARTLY if any(held) else FAILS


# --- the rules -------------------------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Reconstructions that differ in the window alone: the runs of every window, and those not recovered."""

    where: str
    runs: dict[str, DataFrame]
    alone: DataFrame


def by_window(rows: DataFrame, view: str) -> list[Windows]:
    """The comparisons of windows, apart for norms and biases trained or not.

    Left out are the replica of the official code, which measures a defect, and windows that train some matrices alone.
    """
    every = [part for group in compare.comparison(rows, "window", view) for part in compare.by_extras(group)]
    settings = [group.setting | {"parametrization": group.runs["parametrization"].iloc[0]} for group in every]
    windows = []
    for where, group in zip(titles(settings), every, strict=True):
        kept = [window for window in group.values if window != REPLICA and not text.is_control(window)]
        windows.append(Windows(where, {window: group.at(window) for window in kept}, group.alone))
    return windows


def window(view: str, rows: DataFrame) -> Iterator[Case]:
    for where, runs, alone in by_window(rows, view):
        large = {name: each for name, each in runs.items() if not compare.of_matrices(name)}
        single = [each for name, each in runs.items() if name in SINGLE]
        if len(large) < 2:
            continue
        best, *_, worst = ranked(large)
        gain, spread = between(alone, large[best]), between(large[worst], large[best])
        if gain is None or spread is None or not gain.value > 0:
            continue
        flat = math.isfinite(spread.value) and spread.value <= NEARLY * gain.value
        against = [between(one, other) for one, other in product(single, large.values())]
        worse = bool(against) and all(each is not None and each.positive for each in against)
        words = "are not measured" if not single else f"are {'' if worse else 'not '}worse than all of these"
        share = f"{spread.value / gain.value:.0%}"
        numbers = (f"{listed('window', runs)}, not recovered {said(compare.summary(alone))}; from half a block up "
                   f"worst and best are {share} of the gain apart; single matrices {words}")  # fmt: skip
        yield Case(where, outcome(flat, worse), numbers, spread.seeds)


def drift(view: str, rows: DataFrame) -> Iterator[Case]:
    def end(panel: DataFrame, window: str) -> tuple[Difference, float] | None:
        """Drift at the last block with all before it, and the mean drift of the blocks alone."""
        runs = panel[panel["variant"] == window]
        accumulated, local = (runs[runs["metric"] == metric].sort_values("block") for metric in (ACCUMULATED, LOCAL))
        if accumulated.empty or local.empty:
            return None
        last = accumulated.iloc[-1]
        # what is not a number has drifted without bounds
        value = math.inf if math.isnan(last["value"]) else float(last["value"])
        return Difference(value, float(last["stderr"]), int(last["runs"])), float(local["value"].mean())

    frame = studies.drifts(rows, view)
    settings = compare.ordered(frame, PANEL)
    for where, setting in zip(titles(settings), settings, strict=True):
        panel = compare.of(frame, setting | {"flow": None})
        halves = end(panel, HALVES)
        for name in SINGLE:
            single = end(panel, name)
            if single is None or halves is None:
                continue
            more = apart(single[0], halves[0])
            growth = single[0].value / single[1] if single[1] else math.inf
            words = [f"{text.value('window', each)} {text.printed(last.value)} at the last block "
                    f"(blocks alone {text.printed(mean)})"
                    for each, (last, mean) in ((name, single), (HALVES, halves))]  # fmt: skip
            numbers = f"{', '.join(words)}; drift grows {growth:.3g} times"
            yield Case(where, outcome(more.positive, growth >= GROWTH), numbers, more.seeds)


def memory(view: str, rows: DataFrame) -> Iterator[Case]:
    for where, every, alone in by_window(rows, view):
        taken = {name: compare.summary(runs, "peak_gib") for name, runs in every.items()}
        peaks = {name: mean.value for name, mean in taken.items() if mean is not None}
        if HALVES not in peaks or len(peaks) < 2:
            continue
        runs = {name: every[name] for name in peaks}
        best, least = ranked(runs)[0], min(peaks, key=lambda name: peaks[name])
        gain, behind = between(alone, runs[best]), between(runs[HALVES], runs[best])
        if gain is None or behind is None or not gain.value > 0:
            continue
        ahead = []
        for name, peak in peaks.items():
            worse, more = between(runs[HALVES], runs[name]), peak / peaks[HALVES] - 1
            if worse is not None and ((more <= -SAME and worse.value >= 0) or (more < SAME and worse.positive)):
                ahead.append(text.value("window", name))
        words = [f"{role}{text.value('window', name)} {said(compare.summary(runs[name]))} ({peaks[name]:.2f} GiB)"
                for role, name in (("", HALVES), ("best ", best), ("least memory ", least))]  # fmt: skip
        front = f"dominated by {', '.join(ahead)}" if ahead else "on the Pareto front"
        numbers = f"{', '.join(words)}; {front}, {behind.value / gain.value:.0%} of the gain behind the best"
        yield Case(where, outcome(behind.value <= NEARLY * gain.value, not ahead), numbers, behind.seeds)


class _Pair(NamedTuple):
    """Reconstruction and retraining at some tokens, their ratio, and how much worse reconstruction is."""

    tokens: int
    ratio: float
    worse: Difference
    numbers: str

    @property
    def matches(self) -> bool:
        return not self.worse.positive


def retraining(view: str, rows: DataFrame) -> Iterator[Case]:
    groups = studies.races(rows, view)
    for where, group in zip(titles([group.setting for group in groups]), groups, strict=True):
        lines = studies.runners(group)
        trained = [_by_tokens(runs) for about, runs in lines if about["recovery"] != "repair"]
        gains = [
            gain.value for at in trained for runs in at.values() if (gain := between(group.alone, runs)) is not None
        ]
        if gains and max(gains) <= 0:
            continue
        local, retrained = (
            [line for line in lines if line[0]["recovery"] == how] for how in ("reconstruct", "retrain")
        )
        every = list(product(local, retrained))
        alike = [pair for pair in every if pair[0][0]["parametrization"] == pair[1][0]["parametrization"]] or every
        for (_, runs), (about, others) in alike:
            pairs = list(_pairs(runs, others))
            if pairs and max(pair.ratio for pair in pairs) * EQUAL >= 1:
                words = ("loss", "parametrization") if len(alike) > 1 else ("loss",)
                yield _race(f"{where}, against {', '.join(text.value(axis, about[axis]) for axis in words)}", pairs)


def _by_tokens(runs: DataFrame) -> dict[int, DataFrame]:
    # what is solved in closed form trains on no number of tokens
    return {
        int(tokens): compare.of(runs, {"training_tokens": tokens})
        for tokens in compare.values_of(runs, "training_tokens")
    }


def _pairs(local: DataFrame, retrained: DataFrame) -> Iterator[_Pair]:
    """All pairs of token counts that have seeds in common."""
    for (tokens, one), (others, other) in product(_by_tokens(local).items(), _by_tokens(retrained).items()):
        worse = between(one, other)
        if worse is not None and tokens > 0:
            numbers = (f"reconstruction {said(compare.summary(one))} on {text.compact(tokens)}, "
                       f"retraining {said(compare.summary(other))} on {text.compact(others)}")  # fmt: skip
            yield _Pair(tokens, others / tokens, worse, numbers)


def _race(where: str, pairs: list[_Pair]) -> Case:
    enough = [pair for pair in pairs if pair.ratio >= TIMES]
    # the nearest to the paper's factor, of those the one on most data; else the largest factor there is
    far = (
        min(enough, key=lambda pair: (pair.ratio, -pair.tokens)) if enough else max(pairs, key=lambda pair: pair.ratio)
    )
    near = [pair for pair in pairs if 1 / EQUAL <= pair.ratio <= EQUAL]
    equal = min(near, key=lambda pair: (max(pair.ratio, 1 / pair.ratio), -pair.tokens)) if near else None
    result = HOLDS if enough and far.matches else PARTLY if far.matches or (equal and equal.matches) else FAILS
    words = [f"{far.numbers} ({'as many tokens' if far is equal else f'{far.ratio:.3g} times the tokens'})"]
    words += [f"at equal tokens {equal.numbers}"] if equal is not None and equal is not far else []
    words += [] if enough else [f"{TIMES:g} times the tokens were not measured"]
    return Case(where, result, "; ".join(words), far.worse.seeds)


def parametrization(view: str, rows: DataFrame) -> Iterator[Case]:
    groups = compare.comparison(rows, "parametrization", view)
    for where, group in zip(titles([group.setting for group in groups]), groups, strict=True):
        every = {value: group.at(value) for value in group.values}
        full = {value: runs for value, runs in every.items() if compare.parts(value)[0] == "full"}
        efficient = {value: runs for value, runs in every.items() if value not in full}
        if not full or not efficient:
            continue
        best, other = ranked(full)[0], ranked(efficient)[0]
        whole, part = between(group.alone, full[best]), between(group.alone, efficient[other])
        # where training everything gains nothing there is nothing to share
        if whole is None or part is None or not whole.value > 0:
            continue
        share = part.value / whole.value
        words = []
        for name in (other, best):
            trained = compare.summary(every[name], "trainable_parameters")
            count = f" ({text.compact(trained.value)} trained parameters)" if trained else ""
            words.append(f"{text.value('parametrization', name)} {said(compare.summary(every[name]))}{count}")
        alone = said(compare.summary(group.alone))
        numbers = f"{words[0]} reaches {share:.0%} of the gain of {words[1]}; not recovered {alone}"
        yield Case(where, HOLDS if share >= 1 - NEARLY else PARTLY if share >= HALF else FAILS, numbers, part.seeds)


def _criteria(rows: DataFrame, view: str) -> list[Group]:
    """Reconstructions along the criterion, but for random pruning."""
    runs = compare.measured(rows, view)
    groups = compare.along(runs[runs["criterion"] != FLOOR], "criterion")
    return [group for group in groups if group.setting["recovery"] == "reconstruct"]


def criterion(view: str, rows: DataFrame) -> Iterator[Case]:
    groups = _criteria(rows, view)
    for where, group in zip(titles([group.setting for group in groups], aside="criterion"), groups, strict=True):
        alone = {name: compare.of(group.alone, {"criterion": name}) for name in group.values}
        before = {name: runs for name, runs in alone.items() if len(runs)}
        after = {name: group.at(name) for name in before}
        if len(after) < 2:
            continue
        first, last = spreads(before.values()), spreads(after.values())
        common = sorted(first.keys() & last.keys())
        if not common:
            continue
        shrinks = over([first[seed] - last[seed] for seed in common])
        words = []
        for side, spread, runs in (("before", first, before), ("after", last, after)):
            ratio = math.exp(sum(spread[seed] for seed in common) / len(common))
            words.append(f"{text.printed(ratio)} {side} ({listed('criterion', runs)})")
        result = HOLDS if shrinks.positive else PARTLY if shrinks.value > 0 else FAILS
        yield Case(where, result, f"highest over lowest perplexity {', '.join(words)}", shrinks.seeds)


def scale(view: str, rows: DataFrame) -> Iterator[Case]:
    sized = [group for group in _criteria(rows, view) if group.runs["parameters"].notna().all()]
    every: list[Sizes] = studies.sizes(sized, lambda group, name: True)
    for where, one in zip(titles([each.setting for each in every], aside="criterion"), every, strict=True):
        parameters = [int(group.runs["parameters"].iloc[0]) for group in one.groups]
        if len(set(parameters)) < 2 or not one.better:
            continue
        gaps = [over(list(spreads(group.at(name) for name in one.criteria).values())) for group in one.groups]
        falls = all(larger.value < smaller.value for smaller, larger in pairwise(gaps))
        shrinks = apart(gaps[0], gaps[-1])
        words = ", ".join(f"{group.setting['model']} ({text.compact(size)} parameters) "
                         f"{text.printed(math.exp(gap.value))}"
                         for group, size, gap in zip(one.groups, parameters, gaps, strict=True))  # fmt: skip
        result = HOLDS if falls and shrinks.positive else PARTLY if shrinks.value > 0 else FAILS
        yield Case(where, result, f"highest over lowest perplexity: {words}", shrinks.seeds)


def simple_criterion(view: str, rows: DataFrame) -> Iterator[Case]:
    runs = compare.measured(rows, view)
    base = runs["criterion"].str.split("(").str[0]
    local = compare.recovered(runs[base == SIMPLE], "reconstruct")
    local = local[~local["window"].map(compare.of_matrices).astype(bool)]
    others = runs[base.isin(COMPLEX)]
    alike = [axis for axis in AXES if axis != "criterion"]
    pruned = [axis for axis in (*WHERE, *PRUNED) if axis != "criterion"]
    alone = others[others["recovery"] == text.NOT_RECOVERED]
    sides = {
        how: (axes, {compare.known(key.values()): runs for key, runs in compare.split(theirs, axes)})
        for how, axes, theirs in (("not recovered", pruned, alone), ("reconstructed", alike, others))
    }
    settings = compare.split(local, AXES)
    for where, (setting, ours) in zip(titles([setting for setting, _ in settings]), settings, strict=True):
        opponents = {how: runs.get(compare.known(setting[axis] for axis in axes), others.iloc[:0])
                     for how, (axes, runs) in sides.items()}  # fmt: skip
        ahead: dict[tuple[str, str], Difference] = {}
        words = []
        for how, theirs in opponents.items():
            for name in compare.values_of(theirs, "criterion"):
                opponent = compare.of(theirs, {"criterion": name})
                difference = between(opponent, ours)
                if difference is not None:
                    words.append(f"{text.value('criterion', name)} {how} {said(compare.summary(opponent))}")
                    ahead[name, how] = difference
        if not ahead:
            continue
        first = [difference.positive for (_, how), difference in ahead.items() if how == "not recovered"]
        every = all(difference.positive for difference in ahead.values())
        name, window_name = (text.value(axis, setting[axis]) for axis in ("criterion", "window"))
        numbers = f"{name} reconstructed ({window_name}) {said(compare.summary(ours))}; {', '.join(words)}"
        result = HOLDS if every else PARTLY if first and all(first) else FAILS
        yield Case(where, result, numbers, min(difference.seeds for difference in ahead.values()))
