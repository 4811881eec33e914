"""Deterministic mode: on while a stage computes, off behind it, one line where it is not possible, and equal bits."""

from __future__ import annotations

import pytest
import torch

from freelunch.engine.device import deterministic
from freelunch.errors import FreelunchError
from freelunch.results.stage import Stage
from stage_runs import EXECUTION, STAGES, prepare, subjects, tiny_plan, upstream

STRICT = EXECUTION.model_copy(update={"deterministic": True})
MISSING = "kthvalue CUDA does not have a deterministic implementation, but you set 'x'. You can turn it off."


def compute(spec, root, execution):
    """Run a stage as a job does."""
    stage = Stage(spec, root, execution, "code")
    with stage.computing():
        assert torch.are_deterministic_algorithms_enabled() == execution.deterministic
        STAGES[spec.stage](stage, **({"max_gib": 1.0} if spec.stage == "dense" else {}))


def tensors(root, specs):
    files = [path for spec in specs for path in (root / spec.folder).glob("**/*.safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_stages_compute_in_deterministic_mode_what_they_do_without(tmp_path):
    spec = next(each for each in subjects(tiny_plan()) if each.stage == "reconstructed")
    specs = [*upstream(spec), spec]
    prepare(spec, tmp_path / "plain")
    compute(spec, tmp_path / "plain", EXECUTION)
    for each in specs:
        compute(each, tmp_path / "strict", STRICT)
    assert not torch.are_deterministic_algorithms_enabled()
    found = tensors(tmp_path / "strict", specs)
    assert len(found) > 10 and found == tensors(tmp_path / "plain", specs)


@pytest.mark.parametrize("changed", ["deterministic", "compile"])
def test_a_partial_result_of_the_other_mode_is_not_taken(changed, tmp_path):
    spec = upstream(subjects(tiny_plan())[0])[0]
    changed = EXECUTION.model_copy(update={changed: True})
    first = Stage(spec, tmp_path, EXECUTION, "code").signature
    assert Stage(spec, tmp_path, EXECUTION, "code").signature == first
    assert Stage(spec, tmp_path, changed, "code").signature != first


def test_what_has_no_deterministic_algorithm_is_said_in_one_line(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(FreelunchError) as found, deterministic(True):
        raise RuntimeError(MISSING)
    assert str(found.value).startswith("execution.deterministic: kthvalue CUDA does not have") and "turn" not in str(
        found.value
    )
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(FreelunchError, match="set CUBLAS_WORKSPACE_CONFIG=:4096:8 before"), deterministic(True):
        raise RuntimeError("Deterministic behavior was enabled ... set CUBLAS_WORKSPACE_CONFIG=:4096:8 ...")
    with pytest.raises(RuntimeError, match="out of memory"), deterministic(True):
        raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="kthvalue"), deterministic(False):
        raise RuntimeError(MISSING)


def test_settings_of_torch_come_back_as_they_were():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
