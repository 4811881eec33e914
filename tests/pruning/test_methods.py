"""Methods by name: what is parsed prints as itself, and what cannot be parsed is answered with what could."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freelunch.errors import FreelunchError
from freelunch.pruning.allocations import ALLOCATIONS, ERK, OWL, Given, Uniform, parse_allocation
from freelunch.pruning.criteria import CRITERIA, parse_criterion
from freelunch.pruning.criteria.magnitude import Magnitude
from freelunch.pruning.criteria.ria import RIA
from freelunch.pruning.criteria.sparsegpt import SparseGPT
from freelunch.pruning.criteria.wanda import Wanda
from freelunch.pruning.method import (
    Method,
    canonical_allocation,
    canonical_criterion,
    canonical_pattern,
    canonical_refinement,
    parse_method,
)
from freelunch.pruning.methods import describe, slug
from freelunch.pruning.patterns import NM, Structured, Unstructured
from freelunch.pruning.refinements import (
    ADMM,
    REFINEMENTS,
    Bias,
    DSnoT,
    Exact,
    describe_refinements,
    parse_refinements,
)
from freelunch.recover.parametrizations import PARAMETRIZATIONS, parse_parametrization

WORKFLOW = Path(__file__).parents[2] / "workflow"
quickly = settings(deadline=None, max_examples=100)

numbers = st.decimals("0.000001", 1000, places=6).map(float)
wholes = st.integers(1, 10**6)
fractions = st.decimals("0", "0.9999", places=4).map(float)
criteria_made = st.one_of(
    st.just(Magnitude()), st.just(Wanda()), st.builds(RIA, numbers), st.builds(SparseGPT, wholes, numbers)
)
allocations_made = st.one_of(
    st.just(Uniform()),
    st.builds(ERK, st.decimals("0.01", 1, places=4).map(float)),
    st.builds(OWL, numbers, numbers),
    st.builds(Given, st.lists(fractions, max_size=6).map(tuple)),
)
changes = st.lists(
    st.one_of(st.builds(Exact, numbers), st.builds(ADMM, wholes, numbers, numbers)),
    max_size=3,
).map(tuple)
# swaps start from dense weights and come first, what fits a bias to the weights comes last
swaps = st.one_of(st.just(()), st.tuples(st.builds(DSnoT, wholes, numbers)))
refinements_made = st.tuples(swaps, changes, st.sampled_from([(), (Bias(),)])).map(lambda parts: sum(parts, ()))


@quickly
@given(criteria_made, allocations_made, refinements_made)
def test_what_a_method_prints_as_is_read_back(criterion, allocation, refinement):
    assert parse_criterion(describe(criterion)) == criterion
    assert parse_allocation(describe(allocation)) == allocation
    assert parse_refinements(describe_refinements(refinement)) == refinement


@quickly
@given(criteria_made, allocations_made, refinements_made, st.sampled_from(["50%", "70% global", "20% structured"]))
def test_canonical_texts_are_their_own_canonical_texts(criterion, allocation, refinement, pattern):
    for canonical, text in (
        (canonical_criterion, describe(criterion)),
        (canonical_allocation, describe(allocation)),
        (canonical_refinement, describe_refinements(refinement)),
        (canonical_pattern, pattern),
    ):
        assert canonical(text) == text


@quickly
@given(st.floats(1e-300, 1e11), st.floats(0, 1, exclude_max=True))
def test_values_of_any_number_of_digits_have_one_canonical_text(number, fraction):
    text = canonical_criterion(f"ria(alpha={number!r})")
    assert canonical_criterion(text) == text
    assert parse_criterion(text).alpha == pytest.approx(number, rel=1e-11)
    text = canonical_allocation(f"given({100 * min(fraction, 0.999)}%)")
    assert canonical_allocation(text) == text


@pytest.mark.parametrize("number", ["1000000", "1e11", "1e12", "1.5e300", "1e-7"])
def test_large_and_small_values_of_refinements_are_read_back_too(number):
    text = canonical_refinement(f"admm(rho={number}) + bias")
    assert canonical_refinement(text) == text  # the + of 1e+12 joins nothing
    assert parse_refinements(text) == (ADMM(rho=float(number)), Bias())


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("wanda", Wanda()),
        ("wanda()", Wanda()),
        ("  wanda ( )\n", Wanda()),
        ("ria", RIA(0.5)),
        ("ria(alpha=1)", RIA(1.0)),
        ("ria( alpha = 25% )", RIA(0.25)),
        ("ria(alpha=1e-3)", RIA(0.001)),
        ("sparsegpt", SparseGPT(128, 0.01)),
        ("sparsegpt(damping=5%)", SparseGPT(128, 0.05)),
        ("sparsegpt(damping=.1,block_size=64.0)", SparseGPT(64, 0.1)),
        ("sparsegpt(block_size=6400%)", SparseGPT(64)),
    ],
)
def test_settings_are_read_as_they_are_written(text, method):
    found = parse_criterion(text)
    assert found == method and type(found) is type(method)
    assert all(type(getattr(found, name)) is type(getattr(method, name)) for name in vars(method))


@pytest.mark.parametrize(
    ("text", "method", "printed"),
    [
        ("owl(lambda=8%)", OWL(0.08, 5), "owl"),
        ("owl(lambda=0.1, outlier=500%)", OWL(0.1, 5), "owl(lambda=0.1)"),
        ("owl(outlier=7,lambda=0.05)", OWL(0.05, 7), "owl(lambda=0.05, outlier=7)"),
        ("erk(cap=90%)", ERK(0.9), "erk(cap=0.9)"),
        ("given(40%, 45%,65%)", Given((0.4, 0.45, 0.65)), "given(0.4, 0.45, 0.65)"),
        ("given(0.5)", Given((0.5,)), "given(0.5)"),
        ("given(0, 0%)", Given((0.0, 0.0)), "given(0, 0)"),
        ("given()", Given(), "given"),
    ],
)
def test_allocations_are_read_and_printed(text, method, printed):
    assert parse_allocation(text) == method
    assert canonical_allocation(text) == printed


@quickly
@given(st.lists(st.decimals(0, 99, places=2), min_size=1, max_size=8))
def test_lists_of_percentages_are_the_fractions_they_say(percents):
    found = parse_allocation(f"given({', '.join(f'{percent:f}%' for percent in percents)})")
    assert found.sparsities == pytest.approx([float(percent / 100) for percent in percents], rel=1e-15)
    as_fractions = f"given({', '.join(f'{percent / 100:f}' for percent in percents)})"
    assert canonical_allocation(as_fractions) == describe(found)


def test_refinements_come_in_the_order_they_are_written():
    assert parse_refinements("none") == parse_refinements(" none ") == ()
    assert parse_refinements("dsnot + exact") == (DSnoT(), Exact())
    assert parse_refinements("dsnot(cycles=3,threshold=0)+exact+ bias") == (DSnoT(3, 0), Exact(), Bias())
    assert canonical_refinement("dsnot( cycles=50 )+exact+ bias") == "dsnot + exact + bias"
    assert canonical_refinement("none") == describe_refinements(()) == "none"
    assert parse_refinements("exact + exact(damping=1%)") == (Exact(), Exact())


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_criterion, "wandaa", "there is no criterion 'wandaa'; did you mean 'wanda'? allowed: flap, magnitude"),
        (parse_criterion, "Wanda", "there is no criterion 'Wanda'; did you mean 'wanda'?"),
        (parse_criterion, "xyz", "criterion 'xyz'; allowed: flap, magnitude, random, ria, sparsegpt, wanda"),
        (parse_criterion, "criterion", "there is no criterion 'criterion'"),
        (parse_criterion, "__init__", "there is no criterion '__init__'"),
        (parse_allocation, "allocation", "there is no allocation 'allocation'; allowed: erk, given, lamp"),
        (parse_allocation, "unifrom", "there is no allocation 'unifrom'; did you mean 'uniform'?"),
        (parse_refinements, "dsnot + exakt", "there is no refinement 'exakt'; did you mean 'exact'?"),
        (parse_refinements, "refinement", "there is no refinement 'refinement'"),
        (parse_refinements, "none + exact", "there is no refinement 'none'"),
        (parse_criterion, "ria(alhpa=1)", "'ria(alhpa=1)': there is no setting 'alhpa'; did you mean 'alpha'?"),
        (parse_criterion, "sparsegpt(size=1)", "there is no setting 'size'; allowed: block_size, damping"),
        (parse_criterion, "wanda(alpha=1)", "there is no setting 'alpha'; wanda has no settings"),
        (parse_allocation, "owl(lambda_=1)", "there is no setting 'lambda_'; did you mean 'lambda'?"),
        (parse_allocation, "uniform(by_block=1)", "there is no setting 'by_block'; uniform has no settings"),
        (parse_refinements, "dsnot + admm(rh=1)", "admm(rh=1)': there is no setting 'rh'; did you mean 'rho'?"),
    ],
)  # fmt: skip
def test_unknown_names_and_settings_are_answered_with_the_known(parse, text, message):
    with pytest.raises(FreelunchError) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", " ", "wanda(", "wanda)", "ria(alpha=1", "ria alpha=1", "ria((alpha=1))", "ria(alpha=1)(alpha=1)", "2wanda",
     "wanda, ria", "wanda;", None, 5, 0.5, ["wanda"], True],
)  # fmt: skip
@pytest.mark.parametrize(
    ("parse", "kind"),
    [(parse_criterion, "criterion"), (parse_allocation, "allocation"), (parse_refinements, "refinement")],
)  # fmt: skip
def test_what_is_not_of_the_form_is_refused_and_shown(parse, kind, text):
    with pytest.raises(FreelunchError, match=f"is no {kind}; write ") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["+", "exact +", "+ exact", "exact ++ bias"])
def test_a_plus_stands_between_refinements(text):
    with pytest.raises(FreelunchError, match="is no refinement; write NAME"):
        parse_refinements(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ria(alpha)", "criterion 'ria(alpha)': 'alpha' is not of the form SETTING=VALUE"),
        ("ria(0.5)", "'0.5' is not of the form SETTING=VALUE"),
        ("ria(alpha=1,)", "'' is not of the form SETTING=VALUE"),
        ("ria(alpha=)", "alpha: '' is not a number"),
        ("ria(alpha=%)", "alpha: '%' is not a number"),
        ("ria(alpha=1=2)", "alpha: '1=2' is not a number"),
        ("ria(alpha=half)", "alpha: 'half' is not a number"),
        ("ria(alpha=5%%)", "alpha: '5%%' is not a number"),
        ("ria(alpha=nan)", "alpha: 'nan' is not a number"),
        ("ria(alpha=inf)", "alpha: 'inf' is not a number"),
        ("ria(alpha=1e999)", "alpha: '1e999' is not a number"),
        ("ria(alpha=-inf%)", "alpha: '-inf%' is not a number"),
        ("ria(alpha=0)", "alpha must be above 0, not 0"),
        ("ria(alpha=-0.5)", "alpha must be above 0, not -0.5"),
        ("sparsegpt(block_size=1.5)", "block_size is a whole number, not 1.5"),
        ("sparsegpt(block_size=50%)", "block_size is a whole number, not 50%"),
        ("sparsegpt(block_size=0)", "block_size must be above 0, not 0"),
        ("sparsegpt(damping=0)", "damping must be above 0, not 0"),
    ],
)
def test_values_that_settings_cannot_have_are_refused_with_the_method(text, message):
    with pytest.raises(FreelunchError) as caught:
        parse_criterion(text)
    assert str(caught.value).startswith(f"criterion {text!r}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_allocation, "owl(lambda=0)", "lambda must be above 0, not 0"),
        (parse_allocation, "owl(outlier=-1)", "outlier must be above 0, not -1"),
        (parse_allocation, "erk(cap=0)", "cap is a density, above 0 and at most 1, not 0"),
        (parse_allocation, "erk(cap=101%)", "cap is a density, above 0 and at most 1, not 1.01"),
        (parse_allocation, "given(40%, 100%)", "a sparsity must be at least 0% and below 100%, not 100%"),
        (parse_allocation, "given(-1%)", "a sparsity must be at least 0% and below 100%, not -1%"),
        (parse_allocation, "given(40%,,60%)", "'' is not a number"),
        (parse_allocation, "given(40%, many)", "'many' is not a number"),
        (parse_allocation, "given(sparsities=40%)", "'sparsities=40%' is not a number"),
        (parse_refinements, "dsnot(cycles=0)", "cycles must be above 0, not 0"),
        (parse_refinements, "dsnot(cycles=2.5)", "cycles is a whole number, not 2.5"),
        (parse_refinements, "exact(damping=-1)", "damping must be above 0, not -1"),
        (parse_refinements, "admm(iterations=0)", "iterations must be above 0, not 0"),
        (parse_refinements, "admm(rho=0)", "rho must be above 0, not 0"),
    ],
)
def test_values_out_of_range_are_refused_with_the_method(parse, text, message):
    with pytest.raises(FreelunchError) as caught:
        parse(text)
    assert repr(text) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("text", ["ria(alpha=1, alpha=2)", "ria(alpha=1,alpha=1)"])
def test_a_setting_that_is_given_twice_is_refused(text):
    with pytest.raises(FreelunchError, match=r"alpha is set twice$"):
        parse_criterion(text)


@pytest.mark.parametrize("text", ["bias + exact", "dsnot + bias + admm", "bias + bias"])
def test_a_bias_that_fits_the_weights_comes_after_all_that_changes_them(text):
    with pytest.raises(FreelunchError, match=r"bias fits the weights it is given, so it comes last$") as caught:
        parse_refinements(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("registry", "parse", "names"),
    [
        (CRITERIA, parse_criterion, "flap magnitude random ria sparsegpt wanda"),
        (ALLOCATIONS, parse_allocation, "erk given lamp owl repairability uniform"),
        (REFINEMENTS, parse_refinements, "admm bias dsnot exact"),
        (PARAMETRIZATIONS, parse_parametrization, "biases full lora_prune mask_lora norms scale_lora spp"),
    ],
    ids=["criteria", "allocations", "refinements", "parametrizations"],
)
def test_every_name_stands_for_a_method_that_prints_as_it(registry, parse, names):
    assert registry.names == tuple(names.split())
    for name in registry.names:
        found = parse(name)
        assert describe(found[0] if isinstance(found, tuple) else found) == name


def test_slugs_of_methods_are_names_of_files_and_tell_them_apart():
    texts = [
        "ria",
        "ria(alpha=1)",
        "ria(alpha=0.1)",
        "given(0.4, 0.6)",
        "given(0.46)",
        "dsnot + exact",
        "exact + dsnot",
    ]
    slugs = [slug(text) for text in texts]
    assert len(set(slugs)) == len(texts) and slug("ria(alpha=1)") == "ria-alpha1"
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_") for each in slugs)


def test_a_method_is_parsed_from_its_four_parts():
    found = parse_method("ria(alpha=1)", "2:4", "owl", "dsnot + exact")
    assert found == Method(RIA(1), NM(2, 4), OWL(), (DSnoT(), Exact()))
    assert parse_method("wanda", "50%", "uniform", "none") == Method(Wanda(), Unstructured(0.5), Uniform())
    assert parse_method("wanda", "20% structured", "uniform", "bias").pattern == Structured(0.2)


@pytest.mark.parametrize(
    ("parts", "needed"),
    [
        (("wanda", "50%", "uniform", "none"), False),
        (("flap", "20% structured", "uniform", "bias"), False),
        (("wanda", "50%", "owl", "dsnot"), False),
        (("sparsegpt", "50%", "uniform", "none"), True),
        (("wanda", "50%", "uniform", "exact + bias"), True),
        (("magnitude", "50%", "lamp", "admm"), True),
    ],
)
def test_gram_matrices_are_needed_if_any_part_looks_at_them(parts, needed):
    assert parse_method(*parts).needs_gram is needed


@pytest.mark.parametrize(
    ("pattern", "is_global"),
    [("50%", False), ("50% per matrix", False), ("2:4", False), ("20% structured", False),
     ("50% global", True), ("20% structured global", True)],
)  # fmt: skip
def test_a_method_is_global_if_its_pattern_is(pattern, is_global):
    assert parse_method("wanda", pattern, "uniform", "none").is_global is is_global


def test_a_refinement_that_moves_weights_is_refused_with_structured_patterns():
    for pattern in ("20% structured", "20% structured global"):
        with pytest.raises(FreelunchError, match=f"refinement dsnot would break up pattern {pattern}$"):
            parse_method("wanda", pattern, "uniform", "dsnot + bias").check(3)
    parse_method("wanda", "50%", "uniform", "dsnot + bias").check(3)


@pytest.mark.parametrize(
    "parts",
    [
        ("sparsegpt", "2:4", "owl", "dsnot + exact"),
        ("flap", "20% structured global", "uniform", "bias"),
        ("ria(alpha=1)", "50% global", "uniform", "admm(rho=2)"),
        ("random", "50%", "lamp", "none"),
        ("magnitude", "70% per matrix", "erk(cap=0.9)", "none"),
        ("wanda", "50%", "given(40%, 60%)", "none"),
    ],
    ids=" ".join,
)
def test_parsing_and_checking_a_method_import_no_torch(parts: Any):
    code = (
        "import sys; from freelunch.pruning.method import parse_method;"
        f"parse_method(*{parts!r}).check(2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(WORKFLOW)}, timeout=60)
