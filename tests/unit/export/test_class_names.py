from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.errors import ExportError
from marsmith.export.class_names import class_names, distinct
from marsmith.export.classifier import labels_of
from marsmith_handler.labels import read_labels

NAMES = st.lists(st.text("0123 abé", min_size=1).filter(str.strip), min_size=1, max_size=12, unique=True)
THREE = ["ant", "bee", "cow"]


@pytest.mark.parametrize(
    "labels",
    [
        THREE,
        tuple(THREE),
        {"0": "ant", "1": "bee", "2": "cow"},
        {"2": "cow", "0": "ant", "1": "bee"},
        {0: "ant", 1: "bee", 2: "cow"},
        {"cow": 2, "ant": 0, "bee": 1},
        {"0": ["n01", "ant"], "1": ["n02", "bee"], "2": ("n03", "cow")},
        OrderedDict([(np.int64(1), np.str_("bee")), (np.int64(0), "ant"), (2, "cow")]),
        {"cow": np.int64(2), "ant": np.int64(0), "bee": np.int64(1)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_are_read_in_every_form_that_people_keep_them_in(labels: Any) -> None:
    assert labels_of(labels, 3) == labels_of(lambda: labels, 3) == {"0": "ant", "1": "bee", "2": "cow"}


def test_names_that_are_digits_are_not_taken_for_indices() -> None:
    assert class_names({"7": 0, "0": 1}, 2) == ["7", "0"]
    assert class_names({"0": "7", "1": "0"}, 2) == ["7", "0"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"cow": 2, "ant": 0}, "name output 2, and not 1: the outputs are 0 to 1"),
        ({"1": "ant", "2": "bee"}, "name output 2, and not 0"),
        ({0: "ant"}, "1 labels, and the module 2 outputs"),
        ([], "0 labels"),
        ({}, "0 labels"),
        (["ant", "bee", "cow"], "3 labels, and the module 2 outputs"),
        ({"ant": 0, "bee": 0}, "name output 0 more than once"),
        ({0: "ant", "0": "bee"}, "name output 0 more than once"),
        ({"ant": 0, "1": "bee"}, "'ant' is not the number of an output"),
        ({"ant": "0", "bee": "1"}, "'ant' is not the number of an output"),
        ({True: "ant", False: "bee"}, "True is not the number"),
        ({"ant": True, "bee": False}, "not the number of an output"),
        ({"ant": -1, "bee": 0}, "-1, which is not the number"),
        ({-1: "ant", 0: "bee"}, "-1 is not the number"),
        ({"00": "ant", "1": "bee"}, "'00' is not the number"),
        ({"²": "ant", "1": "bee"}, "'²' is not the number"),
        ({0.0: "ant", 1.0: "bee"}, "0.0 is not the number"),
        ({0: 1, 1: 0}, "the name is 0, not a text"),
        ({0: None, 1: "bee"}, "the name of 0 is None, not a text"),
        ([0, 1], "label 0 is 0, not a text"),
        ([b"ant", b"bee"], "label 0 is b'ant', not a text"),
        ([["n01", "ant"], ["n02", "bee"]], "label 0 is .*not a text"),
        (["ant", " "], "label 1 is ' ', which cannot be encoded in a reply"),
        (["ant", "\ud800"], r"label 1 is '\\ud800', which cannot be encoded in a reply"),
        ("ab", "of the type str"),
        (b"ab", "of the type bytes"),
        ({"ant", "bee"}, "of the type set"),
        ((name for name in ("ant", "bee")), "of the type generator"),
        ({"ant": 0, "bee": 1}.keys(), "of the type dict_keys"),
        (np.array(["ant", "bee"]), "of the type ndarray"),
        (None, "of the type NoneType"),
        (2, "of the type int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_of_any_other_form_are_refused_with_what_is_expected(labels: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        labels_of(labels, 2)
    assert '{"ant": 0, "bee": 1} (class_to_idx)' in str(caught.value.tip)


def test_a_labels_function_that_raises_is_named() -> None:
    with pytest.raises(ExportError, match=r"labels\(\) of the recipe raises KeyError: 'x'"):
        labels_of(lambda: dict[str, Any]()["x"], 2)


def test_names_that_several_outputs_share_stay_apart() -> None:
    assert distinct(["crane", "ant", "crane"]) == ["crane (0)", "ant", "crane (2)"]
    assert len(set(distinct(["a", "a", "a (0)", "a (1)"]))) == 4


@given(NAMES, st.randoms(use_true_random=False))
def test_the_builder_and_the_handlers_read_the_same_files_alike(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], random: Any
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    order = random.sample(range(len(names)), len(names))
    forms = [
        names,
        {str(index): names[index] for index in order},
        {names[index]: index for index in order},
        {str(index): ["id", names[index]] for index in order},
    ]
    for form in forms:
        (folder / "labels.json").write_text(json.dumps(form), encoding="utf-8")
        assert class_names(form, len(names)) == read_labels(folder / "labels.json") == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "ant\nbee\ncow\n"),
        ("labels.txt", "\ufeffant\r\nbee\r\ncow"),
        ("config.json", '{"model_type": "vit", "id2label": {"0": "ant", "1": "bee", "2": "cow"}}'),
        ("index_to_name.json", '{"object_type_names": ["ant", "bee", "cow"]}'),
        ("class_to_idx.json", '{"cow": 2, "ant": 0, "bee": 1}'),
    ],
)
def test_a_handler_reads_the_other_files_that_people_keep_labels_in(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(tmp_path / name) == THREE


@pytest.mark.parametrize(
    "text", ["", "3", '"ab"', '{"0": 1.5}', '{"a": 0, "b": 0}', '{"x": "ant"}', '{"1000000": "a"}', "[0]", "{", "[[]]"]
)
def test_a_labels_file_of_another_form_is_named_with_what_is_expected(tmp_path: Path, text: str) -> None:
    (tmp_path / "index_to_name.json").write_text(text)
    with pytest.raises(RuntimeError, match=r'index_to_name\.json should hold \["ant", "bee"\]'):
        read_labels(tmp_path / "index_to_name.json")
