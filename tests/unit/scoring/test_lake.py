"""Commits of a finished batch to Delta Lake and Iceberg: once, also after a crash before them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith.cli import main
from marsmith.errors import BatchError
from marsmith.scoring import lake, parts
from marsmith.scoring.destination import open_destination
from marsmith.scoring.items import Item
from marsmith.scoring.plan import Plan, Settings, make_plan
from marsmith.scoring.rows import Row
from support.batches import light_archive, write_inputs

BOXES = [{"cat": [1.0, 2.0, 3.5, 4.0], "score": 0.5}]
CLASSES = {"cat": 0.75, "dog": 0.25}


def write_parts(folder: Path, form: str, reply: object, keys: int = 5) -> Plan:
    """Write the parts of a batch in which every input got this reply."""
    (folder / "work").mkdir(parents=True)
    settings = Settings("m:1.0", "a" * 64, shard_rows=3, batch_size=2, threads=1, reply=form)
    items = [Item(f"k{number}", 1, "m1", "", 0) for number in range(keys)]
    plan, _ = make_plan(items, ["in"], settings, folder / "work")
    rows = [Row(f"k{number}", 200, json.dumps(reply).encode()) for number in range(keys)]
    with open_destination(str(folder)) as to:
        for shard in range(plan.shards):
            to.create(parts.part_name(shard), parts.encode_part(rows[3 * shard : 3 * shard + 3], plan))
    return plan


def delta_rows(table: Path) -> list[dict[str, object]]:
    from deltalake import DeltaTable

    return list(DeltaTable(str(table)).to_pyarrow_table().to_pylist())


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Name a catalog in a file, as pyiceberg's configuration does, which is read once in a process."""
    folder = tmp_path_factory.mktemp("catalog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYICEBERG_CATALOG__LOCAL__URI", f"sqlite:///{folder}/catalog.db")
        patch.setenv("PYICEBERG_CATALOG__LOCAL__WAREHOUSE", f"file://{folder}/warehouse")
        yield


@pytest.mark.parametrize(("form", "reply"), [("classes", CLASSES), ("boxes", BOXES), ("vector", [0.5]), ("json", 1)])
def test_a_batch_is_appended_to_a_delta_table_once(form: str, reply: object, tmp_path: Path) -> None:
    plan = write_parts(tmp_path / "to", form, reply)
    with open_destination(str(tmp_path / "to")) as to:
        found = [lake.commit_delta(str(tmp_path / "table"), to, plan) for _ in range(2)]
    assert found == [True, False]
    assert sorted(str(row["key"]) for row in delta_rows(tmp_path / "table")) == [f"k{number}" for number in range(5)]


def test_two_batches_are_in_one_delta_table_and_other_columns_are_refused(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    for name, form, reply in (("one", "classes", CLASSES), ("more", "classes", CLASSES), ("odd", "vector", [1.0])):
        plan = write_parts(tmp_path / name, form, reply, keys=len(name))
        with open_destination(str(tmp_path / name)) as to:
            if name == "odd":
                with pytest.raises(BatchError, match="table: "):
                    lake.commit_delta(table, to, plan)
            else:
                assert lake.commit_delta(table, to, plan)
    assert len(delta_rows(tmp_path / "table")) == 7


@pytest.mark.parametrize(("form", "reply"), [("classes", CLASSES), ("boxes", BOXES)])
def test_a_batch_is_added_to_an_iceberg_table_once(form: str, reply: object, tmp_path: Path, catalog: None) -> None:
    from pyiceberg.catalog import load_catalog

    plan = write_parts(tmp_path / "to", form, reply)
    with open_destination(str(tmp_path / "to")) as to:
        found = [lake.commit_iceberg(f"local.scores.{form}", to, plan) for _ in range(2)]
        with pytest.raises(BatchError, match=r"is not CATALOG\.NAMESPACE\.TABLE"):
            lake.commit_iceberg("photos", to, plan)
    assert found == [True, False]
    rows = load_catalog("local").load_table(f"scores.{form}").scan().to_arrow().to_pylist()
    assert sorted(row["key"] for row in rows) == [f"k{number}" for number in range(5)]
    assert len(list((tmp_path / "to").glob("part-*"))) == plan.shards


@pytest.mark.usefixtures("light_workers")
def test_a_rerun_commits_what_a_crash_before_the_commit_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    light_archive(Path("light"))
    write_inputs(Path("in"), [b"x", b"bad"])
    assert main(["batch", "light", "in", "--to", "to"]) == 3
    for said in ("table has the batch\n", "table has the batch already\n"):
        assert main(["batch", "light", "in", "--to", "to", "--delta", "table"]) == 3
        assert said in capsys.readouterr().err
    assert len(delta_rows(Path("table"))) == 2
