"""Inference of a batch in which one item can fail without the others: whole first, in halves only after a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from marsmith_handler.errors import InsufficientStorage, InternalError, ItemError

Infer = Callable[[list[Any]], Sequence[Any]]
Explain = Callable[[Exception, int], ItemError]


def infer_isolated(infer: Infer, items: list[Any], explain: Explain) -> list[Any]:
    """Infer a batch; return one result or one ItemError for each item, and never raise because of an item.

    If the batch fails, it is halved until the failing items are found. Then the others are inferred once more
    together, so that they get the results of a batch without the failing ones. If memory ran out, the results of the
    halves are kept.

    Args:
        infer: returns one result for each item.
        items: the batch.
        explain: returns the error for an exception of ``infer``, for a batch of so many items.
    """
    results = _halved(infer, items, explain)
    healthy = [index for index, result in enumerate(results) if not isinstance(result, ItemError)]
    short_of_memory = any(isinstance(result, InsufficientStorage) for result in results)
    if len(healthy) in (0, len(items)) or short_of_memory:
        return results
    together = _attempt(infer, [items[index] for index in healthy], explain)
    if not isinstance(together, ItemError):
        for index, result in zip(healthy, together, strict=True):
            results[index] = result
    return results


def _halved(infer: Infer, items: list[Any], explain: Explain) -> list[Any]:
    outcome = _attempt(infer, items, explain)
    if not isinstance(outcome, ItemError):
        return outcome
    if len(items) == 1:
        return [outcome]
    middle = len(items) // 2
    return _halved(infer, items[:middle], explain) + _halved(infer, items[middle:], explain)


def _attempt(infer: Infer, items: list[Any], explain: Explain) -> list[Any] | ItemError:
    # The exception must be released before the next attempt: its traceback keeps the tensors that did not fit.
    try:
        results = infer(items)
        if len(results) == len(items):
            return list(results)
        return InternalError(f"infer gave {len(results)} results for {len(items)} items")
    except Exception as error:
        return explain(error, len(items))
