"""An archive as a step of a Ray Data pipeline.

    import ray
    from marsmith.scoring.ray import Archive

    photos = ray.data.read_binary_files("photos", include_paths=True)
    answers = photos.map_batches(Archive, fn_constructor_args=["m-1.0.mar"], concurrency=2, num_cpus=1)

Each actor admits and proves the archive when it starts. The columns of the answers are those of ``marsmith batch``. Ray
decides what is repeated and in which order the rows come; ``marsmith batch --on ray`` writes each input exactly once.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.archive.admit import Policy, admit
from marsmith.archive.unpacked import unpacked
from marsmith.inputs import guess_content_type
from marsmith.scoring.engine import open_engine
from marsmith.scoring.rows import Row, reply_form, to_table

if TYPE_CHECKING:
    import pyarrow as pa


class Archive:
    """Answers the batches of ``map_batches``, in its default format or as ``pyarrow``."""

    def __init__(
        self, archive: str | bytes, *, column: str = "bytes", batch_size: int | None = None, threads: int = 1
    ) -> None:
        """Load an archive, and prove it.

        Args:
            archive: path on every node, or the content of the file.
            column: with the inputs.
            batch_size: inputs that the handler gets at once; None: the model config's.
            threads: of the handler, unless its settings have a number.

        Raises:
            ArchiveError: it does not match its digests.
            HandlerError: it does not load.
        """
        self._column = column
        self._stack = ExitStack()
        path = Path(archive) if isinstance(archive, str) else self._written(archive)
        admitted = admit(path, Policy()).archive
        members = self._stack.enter_context(unpacked(path))
        self._form = reply_form(admitted)
        self._size = batch_size or members.batch_size
        engine = open_engine(members.folder, batch_size=self._size, threads=threads, gpu_id=None)
        self._engine = self._stack.enter_context(engine)

    def __call__(self, batch: dict[str, Any] | pa.Table) -> dict[str, Any] | pa.Table:
        """Return the batch with the columns of the answers.

        Raises:
            WorkerLostError: the process of a handler that is not built on ours has died; Ray repeats the batch.
        """
        if isinstance(batch, dict):
            found = self._answers([bytes(each) for each in batch[self._column]])
            return {**batch, **{name: found[name].to_pylist() for name in found.column_names}}
        found = self._answers(batch[self._column].to_pylist())
        for name in found.column_names:
            batch = batch.append_column(name, found[name])
        return batch

    def _answers(self, bodies: list[bytes]) -> pa.Table:
        rows: list[Row] = []
        for start in range(0, len(bodies), self._size):
            some = bodies[start : start + self._size]
            answers = self._engine.answer(some, [guess_content_type("", body) for body in some])
            rows += [Row("", answer.status, answer.body, answer.content_type) for answer in answers]
        return to_table(rows, self._form).drop_columns(["key"])

    def _written(self, content: bytes) -> Path:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="marsmith-ray-"))
        path = Path(folder, "archive.mar")
        path.write_bytes(content)
        return path
