"""Answer one shard: read its inputs, ask the handler batch by batch, and return its rows in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from marsmith.inputs import guess_content_type
from marsmith.scoring.destination import Destination
from marsmith.scoring.engine import Engine
from marsmith.scoring.items import Item
from marsmith.scoring.reading import Content, Reader, Unreadable
from marsmith.scoring.rows import Row

# The status of an input whose worker died, as TorchServe's frontend gives it.
_DIED = 500
# Bytes of the name of an input that the name of its copy has: file systems allow 255 for the whole.
_MOST_NAME = 150


def score_shard(
    engine: Engine,
    items: Sequence[Item],
    batches: Sequence[Sequence[int]],
    *,
    dead: Mapping[int, str],
    root: Path,
    content_type: str | None = None,
    on_batch: Callable[[Sequence[int]], None] = lambda _: None,
    on_done: Callable[[int], None] = lambda _: None,
    quarantine: Destination | None = None,
) -> list[Row]:
    """Answer the inputs of a shard.

    Args:
        engine: the handler.
        items: the inputs.
        batches: positions of inputs; with ``dead`` all of them, each once.
        dead: why inputs are passed over, by position.
        root: folder of relative paths.
        content_type: of all inputs; None: guessed from each.
        on_batch: called with the positions of a batch before the handler gets it.
        on_done: called with their number after that.
        quarantine: gets a copy of each input without a right answer.

    Raises:
        WorkerLostError: the handler's process has died.
        AccessError: the quarantine cannot be written.
    """
    rows: dict[int, Row] = {}
    with Reader(items, root) as reader:
        for batch, contents in reader.batches(batches):
            on_batch(batch)
            rows.update(_answer(engine, items, batch, contents, content_type))
            on_done(len(batch))
            if quarantine:
                _set_aside(quarantine, [(rows[at], each) for at, each in zip(batch, contents, strict=True)])
        for at, reason in dead.items():
            rows[at] = Row(items[at].key, _DIED, error=f"its worker died: {reason}")
            if quarantine:
                _set_aside(quarantine, [(rows[at], reader.read(items[at]))])
    return [rows[at] for at in range(len(items))]


def _answer(
    engine: Engine, items: Sequence[Item], batch: Sequence[int], contents: Sequence[Content], content_type: str | None
) -> dict[int, Row]:
    pairs = list(zip(batch, contents, strict=True))
    rows = {
        at: Row(items[at].key, found.status, error=found.message)
        for at, found in pairs
        if isinstance(found, Unreadable)
    }
    read = [(at, body) for at, body in pairs if not isinstance(body, Unreadable)]
    if read:
        bodies = [body for _, body in read]
        kinds = [content_type or guess_content_type(items[at].key, body) for at, body in read]
        for (at, _), answer in zip(read, engine.answer(bodies, kinds), strict=True):
            rows[at] = Row(items[at].key, answer.status, answer.body, answer.content_type)
    return rows


def _set_aside(quarantine: Destination, pairs: Sequence[tuple[Row, Content]]) -> None:
    for row, content in pairs:
        if row.is_bad and isinstance(content, bytes):
            quarantine.create(quarantined_name(row.key), content)


def quarantined_name(key: str) -> str:
    """Return the name of the copy of an input: its own, after what tells apart inputs of one name."""
    name = key.rpartition("/")[2].replace("\0", "").encode()[-_MOST_NAME:].decode(errors="ignore") or "input"
    return f"{hashlib.sha256(key.encode()).hexdigest()[:12]}-{name}"
