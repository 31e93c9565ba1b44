"""Commit a finished batch to a table of Delta Lake or Iceberg, once: a second commit of the same plan is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.errors import BatchError, MarsmithError, MissingDependencyError
from marsmith.scoring import urls
from marsmith.scoring.destination import Folder, Prefix
from marsmith.scoring.parts import part_name
from marsmith.scoring.plan import Plan
from marsmith.scoring.tables import parquet

if TYPE_CHECKING:
    import pyarrow as pa

# What tells in a table that a plan is committed.
_PROPERTY = "marsmith.plan"
_VERSION = 1


def commit_delta(table: str, to: Folder | Prefix, plan: Plan) -> bool:
    """Append the rows of a finished batch to a Delta table, which is made if there is none; return whether it did.

    Args:
        table: path or URL.
        to: destination of the batch.
        plan: its plan.

    Raises:
        BatchError: the table refuses, for example because its columns differ.
        MissingDependencyError: deltalake is not installed.
    """
    try:
        from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    except ImportError:
        raise MissingDependencyError("deltalake", extra="delta") from None
    address = table if urls.is_url(table) else str(Path(table).absolute())
    identity = f"marsmith-{plan.digest}"

    def is_there() -> bool:
        return DeltaTable.is_deltatable(address) and DeltaTable(address).transaction_version(identity) is not None

    def append() -> None:
        # Two that commit at once conflict in the transaction, so that one of them fails.
        properties = CommitProperties(app_transactions=[Transaction(identity, _VERSION)])
        write_deltalake(address, _reader(to, plan), mode="append", commit_properties=properties)

    return _once(table, is_there, append)


def commit_iceberg(table: str, to: Folder | Prefix, plan: Plan) -> bool:
    """Add the parts of a finished batch to an Iceberg table, which is made if there is none; return whether it did.

    The parts stay where they are, and belong to the table then.

    Args:
        table: ``CATALOG.NAMESPACE.TABLE``; the catalog is one of pyiceberg's configuration.
        to: destination of the batch.
        plan: its plan.

    Raises:
        BatchError: there is no such catalog, or the table refuses.
        MissingDependencyError: pyiceberg is not installed.
    """
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError:
        raise MissingDependencyError("pyiceberg", extra="iceberg") from None
    catalog_name, _, name = table.partition(".")
    namespace = name.rpartition(".")[0]
    if not namespace:
        raise BatchError(f"--iceberg {table} is not CATALOG.NAMESPACE.TABLE", tip="as in default.scores.photos")

    def made() -> Any:
        catalog = load_catalog(catalog_name)
        catalog.create_namespace_if_not_exists(namespace)
        return catalog.create_table_if_not_exists(name, schema=_schema(to))

    def is_there() -> bool:
        snapshots = made().snapshots()
        return any(
            each.summary and each.summary.additional_properties.get(_PROPERTY) == plan.digest for each in snapshots
        )

    def add() -> None:
        base = f"file://{to.path.absolute()}" if isinstance(to, Folder) else to.address
        files = [f"{base}/{part_name(shard)}" for shard in range(plan.shards)]
        # It refuses files that the table has already.
        made().add_files(files, snapshot_properties={_PROPERTY: plan.digest})

    return _once(table, is_there, add)


def _once(table: str, is_there: Callable[[], bool], commit: Callable[[], None]) -> bool:
    """Commit unless that was done before, also by another process meanwhile."""
    try:
        if is_there():
            return False
        try:
            commit()
        except Exception:
            if is_there():
                return False
            raise
    except MarsmithError:
        raise
    except Exception as error:
        # The libraries of tables raise errors of their own.
        raise BatchError(
            f"{table}: {type(error).__name__}: {error}", tip="the answers are written; the same command commits again"
        ) from None
    return True


def _schema(to: Folder | Prefix) -> pa.Schema:
    return parquet().read_schema(BytesIO(to.read(part_name(0)))).remove_metadata()


def _reader(to: Folder | Prefix, plan: Plan) -> pa.RecordBatchReader:
    """Return the rows of all parts, read one part at a time."""
    import pyarrow

    def batches() -> Iterator[pa.RecordBatch]:
        for shard in range(plan.shards):
            table = parquet().read_table(BytesIO(to.read(part_name(shard))))
            yield from table.replace_schema_metadata(None).to_batches()

    return pyarrow.RecordBatchReader.from_batches(_schema(to), batches())
