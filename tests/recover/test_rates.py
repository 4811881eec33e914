"""Learning rates: their schedules against formulas, and the search for the best of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freelunch.recover import schedule as rates

EXPONENTS = range(rates.LOWEST, rates.HIGHEST + 1)


@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True), st.sampled_from(["linear", "cosine", "constant"]))
def test_rates_rise_to_the_peak_and_follow_their_schedule(total, warmup, schedule):
    peak, rising = 3e-4, int(warmup * total)
    found = [rates.learning_rate(peak, step, total, warmup, schedule) for step in range(1, total + 1)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in found) and max(found) == pytest.approx(peak)
    for step, rate in enumerate(found, 1):
        if step <= rising:
            expected = peak * step / rising
        else:
            gone = (step - rising - 1) / (total - rising)  # 0 at the first step after the warm-up, 1 one after the last
            expected = peak * {"linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}.get(schedule, 1)
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-12 * peak)


@given(
    best=st.sampled_from(EXPONENTS), slopes=st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)), above=st.integers(1, 20)
)
@settings(max_examples=300)
def test_the_search_finds_the_lowest_loss_that_does_not_diverge(best, slopes, above):
    """Of losses that fall and then rise, and are infinite from some rate on."""
    tried = []

    def trial(rate):
        tried.append(rate)
        exponent = round(2 * math.log10(rate))
        if exponent >= best + above:
            return math.inf
        return 1 + abs(exponent - best) * slopes[exponent > best]

    found = rates.search_rate(trial)
    assert rates.best_rate(found) == rates.rate_of(best)
    assert found == {rate: found[rate] for rate in sorted(tried)} and len(tried) == len(found)  # each once
    assert min(tried) >= 1e-8 and max(tried) <= 0.1
    assert len(tried) <= abs(best - rates.START) + 3


def test_where_every_rate_diverges_the_lowest_is_left():
    found = rates.search_rate(lambda _: math.inf)
    assert rates.best_rate(found) == 1e-8 and len(found) == rates.START - rates.LOWEST + 1
    assert rates.best_rate({1e-3: 2.0, 1e-4: 2.0, 1e-2: 3.0}) == 1e-4
    assert [rates.trial_steps(total) for total in (1, 3, 20, 40, 101)] == [1, 3, 5, 10, 26]


def test_rates_that_change_nothing_are_passed_over():
    """Updates that rounding takes back: the loss is that of the start until a rate is high enough."""
    best = 10**-1.5
    tried = rates.search_rate(lambda each: 1.0 if each < best * 0.9 else 0.5 + abs(each - best))
    assert rates.best_rate(tried) == rates.rate_of(-3)
    assert rates.best_rate(rates.search_rate(lambda each: 1.0)) == rates.rate_of(rates.START - 1)  # none does anything
