"""A batch in which one item can fail without the others: run it whole, and only where that fails, in halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from marsmith_handler.errors import InsufficientStorage, InternalError, ItemError

Infer = Callable[[list[Any]], Sequence[Any]]
Explain = Callable[[Exception, int], ItemError]


def infer_isolated(infer: Infer, items: list[Any], explain: Explain) -> list[Any]:
    """Infer a batch; return one result or one ItemError an item, and never raise because of an item.

    Where the batch fails, it is halved until the guilty items are found; then the others are inferred once more
    together, so that they get what the batch without the guilty ones gives. Where memory ran out, the halves' results
    stand.

    Args:
        infer: gives one result an item.
        items: the batch.
        explain: names what an exception of ``infer`` means, for a batch of so many items.
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
    # The exception must be let go before the next attempt: its traceback holds the tensors that did not fit.
    try:
        results = infer(items)
        if len(results) == len(items):
            return list(results)
        return InternalError(f"infer gave {len(results)} results for {len(items)} items")
    except Exception as error:
        return explain(error, len(items))
