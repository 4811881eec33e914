"""Deterministic mode: on while a stage computes, off behind it, one line where it is not possible, and equal bits."""

from __future__ import annotations

import pytest
import torch

from freelunch.engine.device import deterministic
from freelunch.errors import FreelunchError
from freelunch.results.stage import Stage
from freelunch.stages import function_of
from one_of_each import SHARDED, SPECS
from stage_runs import EXECUTION, upstream

STRICT = SHARDED.model_copy(update={"deterministic": True, "shards": 1})
MISSING = "kthvalue CUDA does not have a deterministic implementation, but you set 'x'. You can turn it off."


def test_stages_compute_in_deterministic_mode_what_they_do_without(made, tmp_path):
    spec = SPECS["reconstructed"]
    specs = [*upstream(spec), spec]
    for each in specs:
        # as a job does
        stage = Stage(each, tmp_path, STRICT, "code", 1.0)
        with stage.computing():
            assert torch.are_deterministic_algorithms_enabled()
            function_of(each)(stage)
        assert not torch.are_deterministic_algorithms_enabled()
    folders = [tmp_path / each.folder for each in specs]
    files = [path.relative_to(tmp_path) for folder in folders for path in folder.glob("**/*.safetensors")]
    assert len(files) > 10
    assert [path for path in files if (tmp_path / path).read_bytes() != (made / path).read_bytes()] == []


@pytest.mark.parametrize("changed", ["deterministic", "compile"])
def test_a_partial_result_of_the_other_mode_is_not_taken(changed, tmp_path):
    spec = SPECS["models"]
    changed = EXECUTION.model_copy(update={changed: True})
    first = Stage(spec, tmp_path, EXECUTION, "code").signature
    assert Stage(spec, tmp_path, EXECUTION, "code").signature == first
    assert Stage(spec, tmp_path, changed, "code").signature != first


def test_what_has_no_deterministic_algorithm_is_said_in_one_line(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    message = "^execution.deterministic: kthvalue CUDA does not have a deterministic implementation, but you set 'x'$"
    with pytest.raises(FreelunchError, match=message), deterministic(True):
        raise RuntimeError(MISSING)
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
