"""``marsmith batch`` from end to end, with a handler that needs no torch."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import psutil
import pytest

from marsmith.cli import main
from marsmith.scoring.parts import PartRecord
from marsmith.scoring.plan import FILE_NAME
from support.batches import (
    HANDLER,
    batch_command,
    light_archive,
    parts_of,
    rows_of,
    run_batches,
    write_inputs,
)
from support.live_server import is_alive, until
from support.long_tests import long
from support.object_store import object_store
from support.runner_archives import CONFIG

pytestmark = pytest.mark.usefixtures("light_workers")

COUNT = 30
BODIES = [b"bad" if number % 10 == 7 else b"x" * number for number in range(COUNT)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an archive ``light``, inputs ``in``, and the answers ``to`` of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    light_archive(folder / "light")
    write_inputs(folder / "in", BODIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["batch", "light", "in", "--to", "to", "--shard-rows", "4", "--workers", "2"]) == 3
        yield folder


@pytest.fixture
def here(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one test, with the archive of the reference."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(reference: Path, to: Path, *arguments: str) -> list[str]:
    return batch_command(reference / "light", "in", "--to", to, "--shard-rows", "4", *arguments)


def test_each_input_has_one_row_in_order_with_its_status_and_its_words(reference: Path) -> None:
    rows = rows_of(reference / "to")
    assert [row["key"] for row in rows] == [f"in/{number:03}.bin" for number in range(COUNT)]
    assert [row["status"] for row in rows] == [422 if number % 10 == 7 else 200 for number in range(COUNT)]
    assert {row["error"] for row in rows} == {None, "a bad one"}
    assert json.loads(rows[3]["reply"]) == {"short": 0.25, "long": 0.75}
    success = json.loads((reference / "to" / "_SUCCESS").read_text())
    assert (success["inputs"], success["bad"], success["statuses"]) == (30, 3, {"200": 27, "422": 3})
    assert sorted(success["parts"]) == [f"part-{number:07}.parquet" for number in range(8)]


def test_a_part_names_its_plan_and_its_archive(reference: Path) -> None:
    import pyarrow.parquet as pq

    metadata = pq.read_schema(reference / "to" / "part-0000000.parquet").metadata
    success = json.loads((reference / "to" / "_SUCCESS").read_text())
    assert metadata[b"marsmith.plan"].decode() == success["plan"]
    assert metadata[b"marsmith.archive"].decode() == success["archive"]


def test_a_rerun_does_nothing_and_has_the_same_exit_code(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (reference / "to").iterdir()}
    assert main(["batch", "light", "in", "--to", "to", "--shard-rows", "4", "--json"]) == 3
    (end,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (end["event"], end["written"], end["bad"], end["complete"]) == ("end", 0, 3, True)
    assert {path.name: path.stat().st_mtime_ns for path in (reference / "to").iterdir()} == before


def test_a_part_that_is_gone_after_the_end_is_missed(
    reference: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reference / "to", here / "to")
    (here / "to" / "part-0000003.parquet").unlink()
    os.chdir(reference)
    run = ["batch", "light", "in", "--to", str(here / "to"), "--shard-rows", "4"]
    assert main(run) == 1
    said = capsys.readouterr().err
    assert f"{here / 'to'} has _SUCCESS, and not part-0000003.parquet: 1 parts are missing" in said
    assert f"TIP: remove {here / 'to'}/_SUCCESS, and run this again" in said
    (here / "to" / "_SUCCESS").unlink()
    assert main(run) == 3
    assert parts_of(here / "to") == parts_of(reference / "to")


def test_results_in_a_source_are_refused(reference: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(here / "in", BODIES[:2])
    archive = str(reference / "light")
    assert main(["batch", archive, "in", "--to", "in/answers"]) == 2
    assert "--to in/answers is in the source in: its files would be inputs" in capsys.readouterr().err
    assert main(["batch", archive, "in", "--to", "to", "--quarantine", "in/bad"]) == 2
    assert "TIP: give --quarantine a folder beside it" in capsys.readouterr().err
    assert not (here / "to").exists()


def test_another_plan_is_refused_with_both_named(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = parts_of(reference / "to")
    assert main(["batch", "light", "in", "--to", "to", "--shard-rows", "5"]) == 1
    said = capsys.readouterr().err
    assert f"to has the plan {json.loads(before['_SUCCESS'])['plan'][:12]}, and this would be " in said
    assert "shard rows: 4, and now 5" in said
    assert "TIP: give --to another folder, or --resume to go on with that plan" in said
    assert parts_of(reference / "to") == before


def test_another_archive_is_refused_also_at_resume(
    reference: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = light_archive(tmp_path / "light", handler=HANDLER + "\n# edited\n")
    for more in ([], ["--resume"]):
        assert main(["batch", str(other), "in", "--to", "to", "--shard-rows", "4", *more]) == 1
        said = capsys.readouterr().err
        assert json.loads((reference / "to" / "_SUCCESS").read_text())["archive"] in said
        assert "--resume to go on" not in said


def test_resume_takes_the_inputs_of_the_plan(reference: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(here / "in", BODIES[:6])
    archive = str(reference / "light")
    assert main(["batch", archive, "in", "--to", "to", "--resume"]) == 1
    assert "to has no plan to resume" in capsys.readouterr().err
    assert main(["batch", archive, "in", "--to", "to", "--plan-only"]) == 0
    assert "6 inputs in 1 parts" in capsys.readouterr().out
    (here / "in" / "new.bin").write_bytes(b"x")
    (here / "in" / "001.bin").unlink()
    assert main(["batch", archive, "in", "--to", "to"]) == 1
    assert "first of them: 'in/001.bin' is missing" in capsys.readouterr().err
    assert main(["batch", archive, "--to", "to"]) == 2
    assert "no SOURCE" in capsys.readouterr().err
    assert main(["batch", archive, "--to", "to", "--resume"]) == 3
    rows = rows_of(here / "to")
    assert [(row["key"], row["status"]) for row in rows[:3]] == [
        ("in/000.bin", 200), ("in/001.bin", 404), ("in/002.bin", 200),
    ]  # fmt: skip
    assert len(rows) == 6


def test_what_kills_its_worker_is_named_and_passed_over_and_its_neighbours_are_answered(
    reference: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = here / "died"
    write_inputs(here / "in", [b"a", b"b", b"poison", b"bad", b"c", f"die once {marker}".encode(), b"d"])
    arguments = ["--to", "to", "--workers", "1", "--quarantine", "aside"]
    assert main(["batch", str(reference / "light"), "in", *arguments]) == 3
    rows = rows_of(here / "to")
    assert [row["status"] for row in rows] == [200, 200, 500, 422, 200, 200, 200]
    assert rows[2]["error"] == "its worker died: it ended with status 9"
    assert marker.exists()
    assert "a worker died in part-0000000.parquet: it ended with status 7" in capsys.readouterr().err
    assert sorted(path.read_bytes() for path in (here / "aside").iterdir()) == [b"bad", b"poison"]


def test_a_batch_without_an_answer_in_time_is_given_up(reference: Path, here: Path) -> None:
    archive = light_archive(here / "light", config=CONFIG.replace("responseTimeout: 60", "responseTimeout: 1"))
    write_inputs(here / "in", [b"a", b"wait"])
    assert main(["batch", str(archive), "in", "--to", "to"]) == 3
    rows = rows_of(here / "to")
    assert [row["status"] for row in rows] == [200, 500]
    assert rows[1]["error"] == "its worker died: no reply within the response timeout of 1 s"


def test_too_many_errors_stop_it_and_its_parts_stay_valid(
    reference: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(here / "in", BODIES)
    asked: list[str] = []
    bad = PartRecord.bad.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(PartRecord, "bad", property(lambda part: asked.append(part.name) or bad(part)))
    run = ["batch", str(reference / "light"), "in", "--to", "to", "--shard-rows", "4", "--workers", "1"]
    assert main([*run, "--max-errors", "1"]) == 1
    assert "2 of 30 inputs got no right answer, and --max-errors allows 1" in capsys.readouterr().err
    stopped = parts_of(here / "to")
    assert 5 <= len(stopped) < 8
    assert main([*run, "--max-errors", "10%"]) == 3
    assert len(asked) < 8 * 6, "each part is counted a few times, however many there are"
    finished = parts_of(here / "to")
    assert stopped.items() <= finished.items()
    assert [row["key"] for row in rows_of(here / "to")] == [row["key"] for row in rows_of(reference / "to")]


def test_slices_make_the_same_parts_and_the_last_one_ends_it(reference: Path, here: Path) -> None:
    os.chdir(reference)
    assert main(["batch", "light", "in", "--to", str(here / "to"), "--shard-rows", "4", "--slice", "1/2"]) == 3
    assert "_SUCCESS" not in parts_of(here / "to")
    assert main(["batch", "light", "in", "--to", str(here / "to"), "--shard-rows", "4", "--slice", "0/2"]) == 3
    assert parts_of(here / "to") == parts_of(reference / "to")


def test_a_damaged_or_foreign_part_is_named(reference: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chdir(reference)
    run = ["batch", "light", "in", "--to", str(here / "to"), "--shard-rows", "4"]
    assert main([*run, "--plan-only"]) == 0
    part = here / "to" / "part-0000002.parquet"
    part.write_bytes(b"half")
    assert main(run) == 1
    assert f"{part} is damaged" in capsys.readouterr().err
    (here / "to" / FILE_NAME).write_text("half")
    assert main(run) == 1
    assert "_plan.json: not JSON" in (said := capsys.readouterr().err)
    assert "TIP: give --to another folder" in said
    (here / "to" / FILE_NAME).unlink()
    assert main(run) == 1
    assert "has parts, and no _plan.json" in capsys.readouterr().err


def test_an_archive_that_does_not_load_is_told_and_nothing_is_answered(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = light_archive(here / "light", handler="raise ImportError('no such library')\n")
    write_inputs(here / "in", [b"a"])
    assert main(["batch", str(archive), "in", "--to", "to"]) == 1
    assert "the handler 'tiny_handler.py' does not load: ImportError: no such library" in capsys.readouterr().err
    assert parts_of(here / "to") == {}


def test_wrong_numbers_are_usage_errors(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "light", "in", "--to", ""]) == 2
    assert "where do the answers go?" in capsys.readouterr().err
    for flag in ("--shard-rows", "--batch-size", "--workers", "--as-of"):
        assert main(["batch", "light", "in", "--to", "x", flag, "0"]) == 2
    assert main(["batch", "light", "nothing", "--to", "x"]) == 2
    assert "no such source: nothing" in capsys.readouterr().err


def test_a_bucket_is_a_source_and_a_destination_also_for_two_that_race(
    reference: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with object_store("photos") as url:
        client = boto3.client("s3")
        for number, body in enumerate(BODIES[:12]):
            client.put_object(Bucket="photos", Key=f"in/{number:03}.bin", Body=body)
        one = batch_command(
            reference / "light", f"{url}/in", "--to", f"{url}/to", "--shard-rows", "4", "--workers", "1"
        )
        assert [code for code, _ in run_batches([one, one])] == [3, 3]
        listed = client.list_objects_v2(Bucket="photos", Prefix="to/")["Contents"]
        for found in listed:
            client.download_file("photos", found["Key"], str(here / found["Key"].rpartition("/")[2]))
        assert [row["key"] for row in rows_of(here)] == [f"s3://photos/in/{number:03}.bin" for number in range(12)]
        assert [row["status"] for row in rows_of(here)] == [422 if number == 7 else 200 for number in range(12)]
        client.delete_object(Bucket="photos", Key="in/003.bin")
        arguments = ["--to", f"{url}/to", "--shard-rows", "4"]
        assert main(["batch", str(reference / "light"), f"{url}/in", *arguments]) == 1
        assert "first of them: 's3://photos/in/003.bin' is missing" in capsys.readouterr().err
        assert main(["batch", str(reference / "light"), f"{url}/in", *arguments, "--resume"]) == 3
        assert client.list_objects_v2(Bucket="photos", Prefix="to/")["Contents"] == listed


# Killed, and in a race ------------------------------------------------------------------------------------------------


def test_a_batch_that_is_killed_again_and_again_ends_with_the_same_bytes(reference: Path, here: Path) -> None:
    to = here / "to"
    for parts in (1, 3, 6):
        with subprocess.Popen(
            command(reference, to, "--workers", "2"), cwd=reference, stderr=subprocess.DEVNULL
        ) as run:
            until(lambda: run.poll() is not None or len(list(to.glob("part-*"))) >= parts, 120)  # noqa: B023
            children = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
            run.kill()
        until(lambda: not any(is_alive(child.pid) for child in children), 60)  # noqa: B023
        until(lambda: not list(to.glob(".writing-*")), 60)
    ((code, _),) = run_batches([["env", "-C", str(reference), *command(reference, to)]])
    assert code == 3
    assert parts_of(to) == parts_of(reference / "to")


def test_two_that_race_and_a_rerun_make_each_part_once(reference: Path, here: Path) -> None:
    racer = ["env", "-C", str(reference), *command(reference, here / "to", "--workers", "1")]
    assert [code for code, _ in run_batches([racer, racer])] == [3, 3]
    assert parts_of(here / "to") == parts_of(reference / "to")
    assert not list((here / "to").glob(".writing-*"))


@long("batch")
def test_fifty_kills_at_random_of_the_batch_or_its_workers(tmp_path: Path) -> None:
    light_archive(tmp_path / "light")
    write_inputs(tmp_path / "in", [b"bad" if number % 9 == 4 else b"x" * number for number in range(600)])
    whole, to, seed = tmp_path / "whole", tmp_path / "to", random.Random(20)
    assert run_batches([["env", "-C", str(tmp_path), *command(tmp_path, whole)]])[0][0] == 3
    kills = 0
    while kills < 50:
        with subprocess.Popen(command(tmp_path, to), cwd=tmp_path, stderr=subprocess.DEVNULL) as run:
            while run.poll() is None and kills < 50:
                # So far that a run which is killed again and again comes to its end.
                there = len(list(to.glob("part-*"))) + seed.randint(0, 4)
                until(lambda: run.poll() is not None or len(list(to.glob("part-*"))) >= there, 120)  # noqa: B023
                time.sleep(seed.uniform(0.0, 0.3))
                with suppress(psutil.NoSuchProcess):
                    victims = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
                    seed.choice(victims).kill()
                    kills += 1
        if (to / "_SUCCESS").exists():
            assert parts_of(to) == parts_of(whole)
            # Begin anew, in another folder, so that there is something to kill.
            to = tmp_path / f"to-{kills}"
    assert run_batches([["env", "-C", str(tmp_path), *command(tmp_path, to)]])[0][0] == 3
    assert parts_of(to) == parts_of(whole)
