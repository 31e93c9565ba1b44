from __future__ import annotations

import pytest
import torch

from marsmith.errors import ExportError
from marsmith.formats.model_spec import Gate
from marsmith.parity import BATCH_SIZES, Parity, compare, require

INPUTS = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in range(5)]


def _classify(images: torch.Tensor) -> torch.Tensor:
    return torch.softmax(images.float().mean((2, 3)) + torch.arange(3), dim=1)


def test_a_module_equals_itself_at_every_batch_size() -> None:
    result = compare(_classify, _classify, INPUTS)
    assert (result.max_abs_error, result.top1_agreement) == (0.0, 1.0)
    assert result.samples == sum(max(size, len(INPUTS)) for size in BATCH_SIZES)


def test_an_error_beyond_the_gate_is_refused_with_its_size() -> None:
    with pytest.raises(ExportError, match=r"largest absolute error is 1\.00e-03, above 1\.00e-04"):
        require(Parity(8, 1e-3, 1.0), Gate())
    with pytest.raises(ExportError, match=r"agreement is 0\.5000, below 1\.0000"):
        require(Parity(8, 0.0, 0.5), Gate())


def test_a_batch_size_baked_into_the_graph_is_found() -> None:
    with pytest.raises(ExportError, match="for 3 inputs"):
        compare(_classify, lambda images: _classify(images)[:1], INPUTS)


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ExportError, match="eager module gives values that are not finite"):
        compare(lambda images: _classify(images) * float("nan"), _classify, INPUTS)
    with pytest.raises(ExportError, match="export gives values that are not finite"):
        compare(_classify, lambda images: _classify(images) / 0, INPUTS)


def test_the_recorded_bound_does_not_depend_on_last_digits() -> None:
    first, second = (Parity(8, error, 1.0).record(Gate()) for error in (2.3e-7, 4.1e-7))
    assert first == second
    assert first["maxAbsErrorBelow"] == 1e-6
