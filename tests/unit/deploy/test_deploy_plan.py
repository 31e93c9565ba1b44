"""Deploys decided without a server: steps, what becomes of earlier versions, recovery, verdicts, and the journal."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith import files
from marsmith.archive import Archive
from marsmith.archive.admit import digest_of
from marsmith.deploy.rollout.observation import (
    Items,
    RolloutLimits,
    Sample,
    Window,
    chance_of_rise,
    probes_slower,
    read_counters,
    verdict,
)
from marsmith.deploy.rollout.plan import (
    Situation,
    Target,
    after_recovery,
    plan,
    recovery,
    retirement,
    rollback_version,
    taken_over,
    untouched,
)
from marsmith.deploy.rollout.store import copy_into_store, find, model_of, take_back
from marsmith.errors import FormatError, OtherBytesError, ServerError, UsageError
from marsmith.project import Project
from marsmith.state.journal import Change, Copy, Journal, JournalFile, Release, parse_journal, render_journal
from support.deploy_fixtures import write_version
from support.live_server import make_project


def release(version: str, workers: int = 1) -> Release:
    return Release(version, f"echo-{version}.mar", None, workers)


def target(version: str, **other: Any) -> Target:
    return replace(Target("deploy", "echo", release(version, 0), examples=3), **other)


def steps(target: Target, seen: Situation, keep: int = 2, watch_s: float = 10) -> list[str]:
    return [f"{step.action} {step.version}" for step in plan(target, seen, keep=keep, watch_s=watch_s)]


THREE = Situation("3.0", {"1.0": 0, "2.0": 1, "3.0": 2}, (release("1.0"), release("2.0"), release("3.0")))


def test_a_deploy_prepares_beside_the_old_version_switches_and_tidies_up() -> None:
    assert steps(target("4.0", stored=True), THREE) == [
        "verify 4.0",
        "store 4.0",
        "register 4.0",
        "ready 4.0",
        "probe 4.0",
        "switch 4.0",
        "watch 4.0",
        "accept 4.0",
        "drain 3.0",
        "scale 2.0",
        "unregister 1.0",
    ]


def test_the_words_of_a_plan_are_these() -> None:
    seen = Situation("1.0", {"1.0": 1}, (release("1.0"),))
    assert [step.detail for step in plan(target("2.0"), seen, keep=0, watch_s=5)] == [
        "verify echo-2.0.mar: structure, digests, examples",
        "register echo-2.0.mar; 1.0 continues to answer",
        "wait until 2.0 has as many workers as its model config says, all READY",
        "ask 2.0 its 3 examples by name, alone and together, and compare its latency",
        "make 2.0 the default version instead of 1.0",
        "watch errors and latency for 5 s; on trouble back to 1.0",
        "accept 2.0: from here on an interrupted deploy is finished",
        "wait until 1.0 has answered all its requests",
        "drain 1.0 and unregister it; its archive stays in the model store",
    ]


def test_the_first_version_of_a_model_needs_no_switch() -> None:
    assert steps(target("1.0"), Situation()) == [
        "verify 1.0",
        "register 1.0",
        "ready 1.0",
        "probe 1.0",
        "watch 1.0",
        "accept 1.0",
    ]


def test_a_version_that_is_registered_is_not_registered_again_and_the_default_needs_no_step() -> None:
    assert "register 2.0" not in steps(target("2.0"), THREE)
    assert steps(target("3.0"), THREE) == []


def test_a_rollback_takes_off_the_version_that_it_leaves_and_registers_one_that_is_gone() -> None:
    back = target("2.0", kind="rollback", release=release("2.0"))
    rest = ["ready 2.0", "probe 2.0", "switch 2.0", "accept 2.0", "drain 3.0", "unregister 3.0"]
    assert steps(back, THREE, watch_s=0) == rest
    asked = next(step.detail for step in plan(back, THREE, keep=2, watch_s=0) if step.action == "probe")
    assert asked == "ask 2.0 its 3 examples by name, alone"
    gone = replace(THREE, workers={"3.0": 1})
    assert steps(back, gone, watch_s=0) == ["verify 2.0", "register 2.0", *rest]


def test_versions_that_were_never_the_default_are_left_alone() -> None:
    seen = replace(THREE, workers={**THREE.workers, "9.9": 1})
    retired = retirement(target("4.0"), seen, keep=0)
    assert retired.unregister == ("3.0", "2.0", "1.0")
    assert not retired.scale


@given(keep=st.integers(0, 5), count=st.integers(0, 5))
def test_so_many_earlier_versions_stay_as_are_to_be_kept(keep: int, count: int) -> None:
    versions = [f"{i}.0" for i in range(1, count + 1)]
    seen = Situation(versions[-1] if versions else None, dict.fromkeys(versions, 1), tuple(map(release, versions)))
    retired = retirement(target("99.0"), seen, keep)
    staying = [version for version in versions if version not in retired.unregister]
    assert staying == versions[max(0, count - keep) :]
    # Of those only the latest keeps its workers.
    assert list(reversed(retired.scale)) == staying[:-1]


@pytest.mark.parametrize(
    ("kind", "step", "remedy"),
    [
        ("deploy", "store", "undo"),
        ("deploy", "register", "undo"),
        ("deploy", "probe", "undo"),
        ("deploy", "switch", "undo"),
        ("deploy", "watch", "undo"),
        ("deploy", "accept", "undo"),
        ("deploy", "drain", "finish"),
        ("deploy", "unregister", "finish"),
        ("rollback", "probe", "undo"),
        ("rollback", "switch", "finish"),
        ("rollback", "drain", "finish"),
    ],
)
def test_what_was_interrupted_is_undone_until_it_is_accepted_and_then_finished(
    kind: str, step: str, remedy: str
) -> None:
    change = Change(kind, release("2.0"), release("1.0"), False, 0, False, 2, step)  # type: ignore[arg-type]
    assert recovery(change) == remedy


def change_at(step: str, *, kind: str = "deploy", registered: bool = False) -> Change:
    """Return a change from 1.0 to 2.0 that stopped at ``step``, whose target had, or was given, two workers."""
    return Change(kind, release("2.0", 2), release("1.0"), registered, 0, False, 2, step, workers={"1.0": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "default", "workers", "says"),
    [
        # What the change itself has left.
        (change_at("probe"), "1.0", {"1.0": 1, "2.0": 2}, None),
        (change_at("register"), "1.0", {"1.0": 1, "2.0": 1}, None),
        (change_at("ready"), "1.0", {"1.0": 1, "2.0": 1}, None),
        (change_at("switch"), "2.0", {"1.0": 1, "2.0": 2}, None),
        (change_at("watch"), "2.0", {"1.0": 1, "2.0": 2}, None),
        (change_at("drain"), "2.0", {"1.0": 1, "2.0": 2}, None),
        (change_at("switch", kind="rollback"), "1.0", {"1.0": 1, "2.0": 2}, None),
        (change_at("probe", registered=True), "1.0", {"1.0": 1, "2.0": 0}, None),
        # Somebody has unregistered, or chosen, something that undoing does not touch.
        (change_at("probe"), "1.0", {"1.0": 1}, None),
        (change_at("watch"), "3.0", {"1.0": 1, "2.0": 2, "3.0": 1}, None),
        # What somebody else has done since.
        (change_at("probe"), "2.0", {"1.0": 1, "2.0": 2}, "2.0 has been made the default version since"),
        (change_at("watch"), "2.0", {"2.0": 2}, "1.0 has been unregistered since: 2.0 stays"),
        (change_at("probe"), "1.0", {"1.0": 1, "2.0": 5}, "2.0 has been given 5 workers since"),
        (change_at("drain"), "1.0", {"1.0": 1, "2.0": 2}, "1.0 has been made the default version since"),
        (change_at("drain"), "1.0", {"1.0": 1}, "2.0 has been unregistered since"),
        (change_at("switch", kind="rollback"), "3.0", {"2.0": 2, "3.0": 1}, "3.0 has been made the default"),
        (change_at("accept", kind="rollback"), "1.0", {"1.0": 1, "2.0": 2}, "1.0 has been made the default"),
    ],
)
def test_what_somebody_did_since_an_interruption_is_told_from_what_it_left(
    change: Change, default: str, workers: dict[str, int], says: str | None
) -> None:
    found = taken_over(change, Situation(default, workers))
    assert (says in found) if says and found else found == says


def test_the_first_version_of_a_model_is_its_default_by_no_ones_choice() -> None:
    change = replace(change_at("probe"), before=None)
    assert taken_over(change, Situation("2.0", {"2.0": 2})) is None


def test_a_finished_deploy_leaves_versions_alone_that_somebody_has_scaled_or_registered_since() -> None:
    change = replace(change_at("drain"), workers={"0.1": 2, "0.2": 1, "1.0": 1})
    seen = Situation("2.0", {"0.1": 0, "0.2": 3, "1.0": 1, "2.0": 2, "9.0": 1})
    assert untouched(change, seen).workers == {"0.1": 0, "1.0": 1, "2.0": 2}
    assert untouched(replace(change, workers=None), seen) == seen


def test_a_plan_begins_where_the_recovery_ends() -> None:
    seen = Situation("2.0", {"1.0": 1, "2.0": 2})
    assert after_recovery(change_at("watch"), "undo", seen) == Situation("1.0", {"1.0": 1})
    assert after_recovery(change_at("watch", registered=True), "undo", seen) == Situation("1.0", seen.workers)
    assert after_recovery(change_at("drain"), "finish", seen) == seen
    assert after_recovery(change_at("drain"), "leave", seen) == seen
    first = replace(change_at("probe"), before=None)
    assert after_recovery(first, "undo", Situation("2.0", {"2.0": 2})) == Situation(None, {})


def test_the_default_version_is_scaled_where_that_is_asked_and_left_alone_otherwise() -> None:
    assert steps(target("3.0", release=release("3.0", 5)), THREE) == ["scale 3.0"]
    assert steps(target("3.0", release=release("3.0", 2)), THREE) == []
    assert steps(target("3.0", kind="rollback", release=release("3.0", 5)), THREE) == []
    journal = Journal("echo", (release("2.0"), release("3.0")))
    assert journal.scaled(release("3.0", 5)).releases == (release("2.0"), release("3.0", 5))
    assert Journal("echo").scaled(release("3.0", 5)).releases == (release("3.0", 5),)


def test_a_rollback_goes_to_the_version_that_was_the_default_before_the_present_one() -> None:
    assert rollback_version("3.0", THREE.releases) == "2.0"
    assert rollback_version("2.0", THREE.releases) == "1.0"
    assert rollback_version("1.0", THREE.releases) is None
    # Someone set another default by hand: back to the last that was deployed.
    assert rollback_version("7.0", THREE.releases) == "3.0"


def test_the_history_grows_by_a_deploy_and_shrinks_by_a_rollback() -> None:
    journal = Journal("echo", (release("1.0"), release("2.0")))
    deploy = Change("deploy", release("3.0"), release("2.0"), False, 0, False, 2, "accept")
    deployed = journal.begun(deploy).accepted().ended()
    assert [r.version for r in deployed.releases] == ["1.0", "2.0", "3.0"]
    assert deployed.begun(deploy).accepted().ended() == deployed
    back = Change("rollback", release("2.0"), release("3.0"), True, 1, False, 2, "accept")
    assert [r.version for r in deployed.begun(back).accepted().releases] == ["1.0", "2.0"]


names = st.text("aZ1._-", min_size=1, max_size=5)
releases = st.builds(Release, names, names, st.none() | names, st.integers(0, 9))
changes = st.builds(
    Change,
    kind=st.sampled_from(["deploy", "rollback"]),
    target=releases,
    before=st.none() | releases,
    registered_before=st.booleans(),
    workers_before=st.integers(0, 9),
    stored=st.booleans(),
    keep=st.integers(0, 9),
    step=names,
    source=st.none() | names,
    copies=st.lists(st.builds(Copy, names, names, names, st.integers(0)), max_size=2).map(tuple),
    workers=st.none() | st.dictionaries(names, st.integers(0, 9), max_size=2),
)
journals = st.builds(Journal, names, st.lists(releases, max_size=4).map(tuple), st.none() | changes)


@settings(max_examples=30)
@given(journal=journals)
def test_a_journal_survives_being_written_and_read(journal: Journal) -> None:
    assert parse_journal(render_journal(journal), "x.json") == journal


@settings(max_examples=30)
@given(journal=journals, data=st.data())
def test_a_damaged_journal_is_refused_by_name(journal: Journal, data: st.DataObject) -> None:
    text = render_journal(journal)
    cut = data.draw(st.integers(0, len(text) - 2))
    with pytest.raises(FormatError, match=r"^x\.json: "):
        parse_journal(text[:cut], "x.json")


def test_a_damaged_journal_on_disk_says_what_to_do(tmp_path: Path) -> None:
    file = JournalFile.of(Project(tmp_path), "echo")
    assert file.read() == Journal("echo")
    file.write(Journal("echo", (release("1.0"),)))
    assert file.read().releases == (release("1.0"),)
    file.path.write_text("{")
    with pytest.raises(ServerError, match="cannot be read") as caught:
        file.read()
    assert str(file.path) in str(caught.value.tip)


def test_a_second_deploy_of_a_model_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    file = JournalFile.of(Project(tmp_path), "echo")
    with file.locked():
        with pytest.raises(ServerError, match=rf"another process, pid {os.getpid()}\b"), file.locked():
            pass
        with JournalFile.of(Project(tmp_path), "other").locked():
            pass
    with file.locked():
        pass


METRICS = """# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
ts_inference_requests_total{model_name="echo",model_version="default",hostname="a",} 120.0
ts_inference_requests_total{model_name="echo",model_version="2.0",hostname="a",} 7.0
ts_inference_requests_total{model_name="other",model_version="default",hostname="a",} 9.0
ts_inference_latency_microseconds{model_name="echo",model_version="default",hostname="a",} 2.5E5
Requests5XX{Level="Host",Hostname="a",} 3.0
Requests4XX{Level="Host",Hostname="a",} 4.0
marsmith_batch_items_sum{ModelName="echo",ModelVersion="3.0",Hostname="a",} 40.0
marsmith_item_errors_total{ModelName="echo",ModelVersion="2.0",Hostname="a",} 9.0
marsmith_item_failures_total{ModelName="echo",ModelVersion="2.0",Hostname="a",} 2.0
marsmith_item_errors_total{ModelName="echo",ModelVersion="1.0",Hostname="a",} 5.0
marsmith_item_errors_total{ModelName="other",ModelVersion="2.0",Hostname="a",} 7.0
QueueTime{Level="Host",Hostname="a",} 0.0
"""


def test_the_counters_of_users_are_those_under_the_version_default_and_items_those_of_their_version() -> None:
    items = {"1.0": Items(5, 0), "2.0": Items(9, 2), "3.0": Items()}
    assert read_counters(METRICS, "echo") == Sample(0, 120.0, 250000.0, 3.0, 4.0, items=items)
    assert read_counters("", "echo") == Sample(0)


def window(
    requests: float = 100,
    latency_ms: float = 5,
    errors: float = 0,
    tracebacks: int = 0,
    seconds: float = 1,
    refused: float = 0,
    items: Items | None = None,
) -> Window:
    spent = requests * latency_ms * 1000
    counted = {} if items is None else {"2.0": items}
    return Window(Sample(0), Sample(seconds, requests, spent, errors, refused, tracebacks, counted), "2.0")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (window(), window(), None),
        (window(), window(errors=1), None),
        (window(), window(errors=5), "5 of 100 requests failed within 1.0 s"),
        (window(), window(tracebacks=5), "5 of 100 requests failed"),
        (window(errors=10), window(errors=12), None),
        (window(errors=10), window(errors=40), "compared with 10.0 expected"),
        (window(latency_ms=50), window(latency_ms=90), None),
        (window(latency_ms=50), window(latency_ms=200), "is 200.0 ms, 4.0 times the old version's 50.0 ms"),
        # What our handlers count, over gRPC alone, and where TorchServe has counted fewer requests.
        (window(), window(items=Items(335, 335)), "335 of 335 requests failed"),
        (window(items=Items()), window(items=Items(1, 1)), None),
        # A sharp rise of refusals, by the whole server or by the version.
        (window(), window(refused=100), "100 of 100 requests (100%) were answered with a status of 400 to 499"),
        (window(items=Items(2)), window(items=Items(60)), "compared with 2% from the old version"),
        (window(items=Items()), window(requests=4, items=Items(4)), "4 of 4 requests (100%)"),
        # The first few come from one user, one after the other.
        (window(requests=400, items=Items(100)), window(requests=9, items=Items(9), seconds=0.1), None),
        # As many as ever, some more, or so few that chance explains them.
        (window(items=Items(25)), window(items=Items(25)), None),
        (window(items=Items(25)), window(items=Items(33)), None),
        (window(requests=8, items=Items(2)), window(requests=8, items=Items(5)), None),
        (window(requests=4), window(requests=4, items=Items(4)), None),
        # Nobody had asked the old version.
        (window(requests=0), window(items=Items(100)), "100 of 100 requests (100%)"),
        (window(requests=0), window(items=Items(99)), None),
        (window(requests=0), window(requests=10, items=Items(10)), None),
        # Other models' refusals are not those of a version that counts its own.
        (window(), window(refused=100, items=Items()), None),
        # Too few requests, or so fast that the difference is noise.
        (window(latency_ms=50), window(requests=5, latency_ms=200), None),
        (window(latency_ms=1), window(latency_ms=20), None),
    ],
)
def test_users_errors_and_latency_are_held_against_the_time_before(
    before: Window, after: Window, says: str | None
) -> None:
    found = verdict(before, after, RolloutLimits(max_error_rate=0.02, max_latency_ratio=2))
    assert (says in found) if says and found else found == says


@settings(max_examples=60)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_chance_of_a_rise_is_that_of_drawing_so_many_hits(b: int, more_b: int, a: int, more_a: int) -> None:
    m, n, hits = b + more_b, a + more_a, a + b
    ways = sum(math.comb(n, k) * math.comb(m, hits - k) for k in range(a, min(hits, n) + 1))
    chance = ways / math.comb(n + m, hits)
    assert chance_of_rise((b, m), (a, n)) == pytest.approx(chance, rel=1e-6)


def test_probes_are_compared_by_their_median() -> None:
    limits = RolloutLimits(max_latency_ratio=2)
    assert probes_slower([100] * 5, [150, 150, 150, 900, 900], limits) is None
    assert "300.0 ms, 3.0 times" in str(probes_slower([100] * 5, [300] * 5, limits))
    assert probes_slower([100] * 2, [300] * 5, limits) is None


def test_an_archive_is_copied_into_the_store_whole_and_the_copy_can_be_removed(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(tmp_path, "1.0").rename(tmp_path / "built.mar")
    found = find(project.model_store, str(archive))
    assert (found.file_name, found.stored) == ("echo-1.0.mar", True)
    copies: list[Copy] = []
    copy_into_store(project.model_store, found, copies.append)
    assert (project.model_store / "echo-1.0.mar").read_bytes() == archive.read_bytes()
    # Now it is there, under either name.
    for reference in (str(archive), "echo-1.0", "echo-1.0.mar"):
        assert not find(project.model_store, reference).stored
    assert take_back(project.model_store, storing(archive, copies)) is None
    assert in_store(project) == []


def test_a_deploy_reads_an_archive_once_for_its_digest_and_once_more_to_copy_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(tmp_path, "1.0").rename(tmp_path / "built.mar")
    read: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda path, usual=files.sha256: (read.append(path), usual(path))[1])
    found = find(project.model_store, str(archive))
    copy_into_store(project.model_store, found, lambda _: None)
    stored = Archive.open(project.model_store / "echo-1.0.mar")
    assert {found.digest} == {digest_of(stored), digest_of(found.archive), find(project.model_store, "echo-1.0").digest}
    assert read == [archive]
    # What has been written since is read again.
    with stored.path.open("ab") as file:
        file.write(b"more")
    assert digest_of(stored) != found.digest
    assert read == [archive, stored.path]


def storing(source: Path, copies: Sequence[Copy]) -> Change:
    """Return the change that has put these copies of an archive into the store."""
    return replace(
        Change("deploy", release("1.0"), None, False, 0, True, 2, "register"), source=str(source), copies=tuple(copies)
    )


def in_store(project: Project) -> list[str]:
    return sorted(path.name for path in project.model_store.iterdir() if path.name != "README.md")


def test_a_signature_travels_with_its_archive_and_goes_with_it(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(tmp_path, "1.0").rename(tmp_path / "built.mar")
    (tmp_path / "built.mar.sig").write_text("signed")
    copies: list[Copy] = []
    copy_into_store(project.model_store, find(project.model_store, str(archive)), copies.append)
    assert (project.model_store / "echo-1.0.mar.sig").read_text() == "signed"
    assert in_store(project) == ["echo-1.0.mar", "echo-1.0.mar.sig"]
    take_back(project.model_store, storing(archive, copies))
    assert in_store(project) == []


def test_what_somebody_else_has_put_there_is_not_replaced_and_not_taken_back(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(tmp_path, "1.0").rename(tmp_path / "built.mar")
    found, target = find(project.model_store, str(archive)), project.model_store / "echo-1.0.mar"
    copies: list[Copy] = []
    target.write_text("theirs")
    with pytest.raises(ServerError, match="is there already, with other bytes"):
        copy_into_store(project.model_store, found, copies.append)
    assert take_back(project.model_store, storing(archive, copies)) is None
    assert target.read_text() == "theirs"
    target.unlink()
    copy_into_store(project.model_store, found, copies.append)
    # Another file with the same bytes is not the one that was put there, and other bytes in it are not either.
    Path(shutil.copy(archive, tmp_path / "same")).rename(target)
    assert "is not the file that was copied there" in str(take_back(project.model_store, storing(archive, copies)))
    target.unlink()
    copies.clear()
    copy_into_store(project.model_store, found, copies.append)
    with target.open("ab") as file:
        file.write(b"more")
    assert "is not the file that was copied there" in str(take_back(project.model_store, storing(archive, copies)))
    assert in_store(project) == ["echo-1.0.mar"]


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_the_only_copy_of_an_archive_is_not_taken_back(tmp_path: Path, how: str) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(tmp_path, "1.0").rename(tmp_path / "built.mar")
    copies: list[Copy] = []
    copy_into_store(project.model_store, find(project.model_store, str(archive)), copies.append)
    archive.unlink() if how == "gone" else archive.write_text("another build")
    assert "is gone" in str(take_back(project.model_store, storing(archive, copies)))
    assert in_store(project) == ["echo-1.0.mar"]


def test_what_an_earlier_marsmith_copied_is_left(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(project.model_store, "1.0")
    old = Change("deploy", release("1.0"), None, False, 0, True, 2, "register")
    assert "an earlier marsmith" in str(take_back(project.model_store, old))
    assert archive.exists()


def test_an_interrupted_deploy_is_known_by_its_source_when_that_is_gone(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    copy = write_version(project.model_store, "1.0")
    gone = tmp_path / "built.mar"
    change = replace(storing(gone, []), target=replace(release("1.0"), archive=copy.name))
    with pytest.raises(UsageError, match="no archive"):
        model_of(project, str(gone))
    JournalFile.of(project, "echo").write(Journal("echo", (), change))
    assert model_of(project, str(gone)) == "echo"
    assert find(project.model_store, str(gone), change).archive.path == copy
    with pytest.raises(UsageError, match="no archive"):
        find(project.model_store, str(tmp_path / "other.mar"), change)
    (JournalFile.of(project, "damaged").path).write_text("{")
    assert model_of(project, str(gone)) == "echo"


def test_the_same_version_with_other_bytes_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    write_version(project.model_store, "1.0").rename(project.model_store / "built.mar")
    other = write_version(tmp_path, "1.0", at_request="time.sleep(0)")
    with pytest.raises(OtherBytesError, match=r"built\.mar is echo:1\.0 as well, with SHA-256 \w+\.\.\., and"):
        find(project.model_store, str(other))


def test_an_archive_that_changes_while_it_is_copied_leaves_nothing(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    archive = write_version(tmp_path, "1.0")
    found = find(project.model_store, str(archive))
    write_version(tmp_path, "1.0", at_request="time.sleep(0)")
    with pytest.raises(ServerError, match="changed while it was copied"):
        copy_into_store(project.model_store, found, lambda _: None)
    assert in_store(project) == []
