from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.errors import UsageError
from marsmith.names import archive_file_name, check_model_name, did_you_mean, nearest, split_model_reference


@pytest.mark.parametrize("name", ["", "-a", ".hidden", "a/b", "a b", "ä", "../x", "a\n", "a:b"])
def test_a_name_that_torchserve_refuses_is_refused_first(name: str) -> None:
    with pytest.raises(UsageError, match="not a model name"):
        check_model_name(name)


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_\-.]{0,20}", fullmatch=True), st.from_regex(r"[0-9]+\.[0-9]+", fullmatch=True)
)
def test_a_reference_splits_into_what_it_was_made_of(name: str, version: str) -> None:
    assert split_model_reference(f"{name}:{version}") == (name, version)
    assert split_model_reference(name) == (name, None)


def test_an_archive_is_named_after_model_and_version() -> None:
    assert archive_file_name("resnet18", "2.0") == "resnet18-2.0.mar"


@pytest.mark.parametrize("version", ["", " ", "../1", "1/2", " 1"])
def test_a_version_that_cannot_stand_in_a_url_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match="not a model version" if version.strip() else "the version is empty"):
        archive_file_name("m", version)


def test_the_nearest_name_is_found_whatever_its_case() -> None:
    assert nearest("batchsize", ["batchSize", "minWorkers"]) == "batchSize"
    assert did_you_mean("zzz", ["batchSize"]) == ""
