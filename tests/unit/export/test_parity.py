from __future__ import annotations

import pytest
import torch

from marsmith.config.export_spec import DEFAULT_LIMITS, Gate, GateLimits
from marsmith.errors import ExportError
from marsmith.export.gate import BATCH_SIZES, Parity, compare, eager_outputs, problems

INPUTS = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in range(5)]
FLOAT32 = DEFAULT_LIMITS["float32"]


def _classify(images: torch.Tensor) -> torch.Tensor:
    return torch.softmax(images.float().mean((2, 3)) + torch.arange(3), dim=1)


WANT = eager_outputs(_classify, INPUTS)


def test_a_module_equals_itself_at_every_batch_size() -> None:
    seen: list[int] = []

    def exported(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return _classify(images)

    result = compare(WANT, exported, INPUTS)
    assert (result.max_abs_error, result.top1_agreement, result.top5_agreement) == (0.0, 1.0, 1.0)
    assert result.cosine == pytest.approx(1)
    assert set(seen) == set(BATCH_SIZES)
    assert result.samples == sum(seen)


def test_every_figure_is_what_it_is_called() -> None:
    want = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    got = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2]])
    images = [torch.full((3, 2, 2), index, dtype=torch.uint8) for index in range(2)]

    def exported(batch: torch.Tensor) -> torch.Tensor:
        return got[batch[:, 0, 0, 0].long()]

    result = compare(want, exported, images, [0, 0])
    assert result.max_abs_error == pytest.approx(0.2)
    assert result.max_relative_error == pytest.approx(0.4)
    assert result.cosine == pytest.approx(float(torch.cosine_similarity(want[1], got[1], 0)))
    # Alternating samples: batches of 1 (2), of 3 (3: 0 1 0) and of 8.
    assert result.top1_agreement == pytest.approx((1 + 2 + 4) / 13)
    assert result.accuracy == pytest.approx((1 + 2 + 4) / 13)
    assert result.eager_accuracy == 1.0
    assert result.top5_agreement == 1.0


def test_an_error_beyond_the_gate_is_said_with_its_size() -> None:
    assert problems(Parity(8, 1e-3), FLOAT32) == [
        "the largest absolute error is 1.00e-03, above 1.00e-04 (by 9.00e-04)"
    ]
    assert problems(Parity(8, 0.0, top1_agreement=0.5), FLOAT32) == [
        "the top-1 agreement is 0.5000, below 1.0000 (by 0.5000)"
    ]
    lost = Parity(8, 0.0, accuracy=0.7, eager_accuracy=0.75)
    assert problems(lost, DEFAULT_LIMITS["int8"]) == ["the accuracy lost is 0.0500, above 0.0100 (by 0.0400)"]
    assert not problems(Parity(8, 0.3, 0.6, 0.9, 0.985, 0.95), DEFAULT_LIMITS["int8"])


def test_a_limit_of_a_precision_goes_over_its_default_and_null_lifts_it() -> None:
    gate = Gate(int8=GateLimits(top1_agreement=0.9, max_abs_error=None))
    assert gate.limits("int8").top1_agreement == 0.9
    assert gate.limits("int8").max_abs_error is None
    assert gate.limits("int8").cosine == DEFAULT_LIMITS["int8"].cosine
    assert gate.limits("float32") == FLOAT32


def test_a_batch_size_baked_into_the_graph_is_found() -> None:
    with pytest.raises(ExportError, match="for 3 inputs"):
        compare(WANT, lambda images: _classify(images)[:1], INPUTS)
    with pytest.raises(ExportError, match="is not the batch"):
        eager_outputs(lambda images: _classify(images)[:2], INPUTS)


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ExportError, match="eager module gives values that are not finite"):
        eager_outputs(lambda images: _classify(images) * float("nan"), INPUTS)
    with pytest.raises(ExportError, match="export gives values that are not finite"):
        compare(WANT, lambda images: _classify(images) / 0, INPUTS)


def test_the_recorded_bound_does_not_depend_on_last_digits() -> None:
    first, second = (Parity(8, error).record(FLOAT32) for error in (2.3e-7, 4.1e-7))
    assert first == second
    assert first["maxAbsErrorBelow"] == 1e-6
    assert first["limits"]["top1Agreement"] == 1.0
