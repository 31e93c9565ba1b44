"""The version that a deploy or rollback switches to, with its archive."""

from __future__ import annotations

from marsmith.archive import Archive
from marsmith.archive.admit import digest_of
from marsmith.deploy.rollout.plan import Target, rollback_version
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.rollout.store import Deployable
from marsmith.errors import UsageError
from marsmith.names import ModelVersion, archive_file_name, check_model_version
from marsmith.server.left_out_versions import refuse_left_out
from marsmith.state.journal import Journal, Release
from marsmith.state.version_bytes import bound_digest, check_bytes, check_release


def deploy_target(site: ModelServer, deployable: Deployable, options: Options, journal: Journal) -> Target:
    """Return the target of a deploy.

    Raises:
        UsageError: the version is bound to other bytes, is left out of the server, or would lose workers in use.
    """
    version = deployable.version
    check_bytes(site.project, version, deployable.archive.path, deployable.digest)
    known = {release.version: release for release in journal.releases}.get(version.version)
    status = site.versions().get(version.version)
    if status:
        refuse_left_out(site.project, status)
    if options.workers and status and status.default and options.workers < status.min_workers:
        raise UsageError(
            f"{version} is the default version and has {status.min_workers} workers: taking some away cuts requests",
            tip=f"marsmith scale {version} --workers {options.workers} --drain 60",
        )
    kept = (status.min_workers if status.default or not known else known.workers) if status else 0
    release = Release(version.version, deployable.file_name, deployable.digest, options.workers or kept)
    return Target("deploy", site.model, release, _example_count(deployable.archive), deployable.stored)


def of_this_model(site: ModelServer, deployable: Deployable) -> Deployable:
    """Return the archive, after a check that it belongs to the locked model."""
    if deployable.version.name != site.model:
        raise UsageError(
            f"{deployable.archive.path} is an archive of {deployable.version.name}, and not of {site.model}"
        )
    return deployable


def rollback_target(site: ModelServer, to: str | None, journal: Journal) -> Target:
    """Return the target of a rollback to a version; None: the default version before.

    Raises:
        UsageError: no earlier version is known, or its archive does not exist.
    """
    default = site.situation(journal).default
    version = check_model_version(to) if to else rollback_version(default, journal.releases)
    if version is None:
        raise UsageError(
            f"no version of {site.model} is known that was the default before {default}",
            tip=f"name one that is registered or in the model store: marsmith rollback {site.model} --to VERSION",
        )
    if status := site.versions().get(version):
        refuse_left_out(site.project, status)
    release = _known_release(site, version, journal)
    archive = stored_archive(site, release)
    return Target("rollback", site.model, release, _example_count(archive.archive) if archive else 0)


def _known_release(site: ModelServer, version: str, journal: Journal) -> Release:
    """Find a version among the deployed ones, the registered ones, and the model store."""
    known = {release.version: release for release in journal.releases}
    if version in known:
        return known[version]
    status = site.versions().get(version)
    if status:
        bound = bound_digest(site.project, ModelVersion(site.model, version))
        return Release(version, status.archive_url.rpartition("/")[2], bound, status.min_workers)
    name = archive_file_name(site.model, version)
    if (site.store / name).exists():
        return Release(version, name, digest_of(Archive.open(site.store / name)), 0)
    raise UsageError(
        f"no version {version} of {site.model} was deployed, is registered or lies in the model store",
        tip=f"deployed were: {', '.join(known) or 'none'}",
    )


def stored_archive(site: ModelServer, release: Release) -> Deployable | None:
    """Open the archive of a version to roll back to. None if it is gone and the version is still registered.

    Raises:
        OtherBytesError: the archive has another digest than the journalled one; a restart could not restore the
            version.
    """
    path = site.store / release.archive
    if not path.exists():
        return None
    archive = Archive.open(path)
    digest = digest_of(archive)
    check_release(site.model, release, path, digest)
    return Deployable(archive, path.name, digest, stored=False)


def _example_count(archive: Archive) -> int:
    from marsmith.archive.verify import read_examples

    return len(read_examples(archive) or [])
