from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from marsmith.cli import main
from marsmith.config.lint.findings import RULES, Finding
from marsmith.errors import HandlerError
from marsmith.runtime import check_handler
from marsmith.runtime.archive_check import TrialRequest, check_archive
from support.projects import REPOSITORY
from support.runner_archives import make_archive

GOOD = """\
class Handler:
    def initialize(self, context):
        self.ready = True

    def handle(self, data, context):
        return [bytes(request["body"]).decode() for request in data]
"""


def lay(folder: Path, handler: str, files: Mapping[str, str] | None = None) -> Path:
    for name, text in {"handler.py": handler, **(files or {})}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "handler.py"


def shown(found: Sequence[Finding]) -> list[tuple[str, str, int]]:
    return [(item.rule, item.file.name, item.line) for item in found]


def check(folder: Path, handler: str, files: Mapping[str, str] | None = None) -> list[tuple[str, str, int]]:
    return shown(check_handler(lay(folder, handler, files)))


def test_a_good_handler_has_no_findings(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD) == []


@pytest.mark.tensors
@pytest.mark.parametrize("name", ["tensor_handler.py", "image_classifier_handler.py"])
def test_the_shipped_handlers_have_no_findings(name: str) -> None:
    assert check_handler(REPOSITORY / "handlers" / name) == []


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check(tmp_path, "import beside\n" + GOOD, {"beside.py": ""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.py", "handler.py"]


# Each shape, the rule that finds it and its line: TorchServe's own loader refuses every one of them.
REFUSED_SHAPES = {
    "no class": ("X = 1\n", "one-class", 1),
    "two classes": (GOOD + "class Other:\n    pass\n", "one-class", 7),
    "a class within an if": (GOOD + "if True:\n    class Other: pass\n", "one-class", 8),
    "a named tuple": ("from collections import namedtuple\nP = namedtuple('P', 'x')\n" + GOOD, "one-class", 3),
    "a second name for the class": (GOOD + "Alias = Handler\n", "one-class", 7),
    "no handle": (GOOD.replace("def handle", "def answer"), "no-handle", 1),
    "no initialize": (GOOD.replace("def initialize", "def start"), "no-initialize", 1),
    "initialize without context": (GOOD.replace("initialize(self, context)", "initialize(self)"), "signature", 2),
}


ACCEPTED_SHAPES = {
    "a function": "def handle(data, context):\n    return [] if data else None\n",
    "an imported class beside the own": "from pathlib import Path\n" + GOOD,
    "a function beside two classes": "class A: pass\nclass B: pass\ndef handle(data, context):\n"
    "    if data is None:\n        return None\n    return [1 for _ in data]\n",
    "a class inside the class": GOOD + "\n    class Inner:\n        pass\n",
    "a base class of the standard library": GOOD.replace("class Handler:", "import abc\nclass Handler(abc.ABC):"),
    "a base class of torchserve": "from ts.torch_handler.base_handler import BaseHandler\n"
    "class Handler(BaseHandler):\n    def initialize(self, context):\n        pass\n",
}


HIDDEN_CLASS = GOOD + "globals()['Hidden'] = type('Hidden', (), {})\n"
NO_LOAD_CALL = "def handle(data, context):\n    return [1 for _ in data]\n"
MASKED_IMPORT = "from json import no_such_name\n" + GOOD

LOADER = """
import json, pathlib, sys
from ts.model_loader import TsModelLoader
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    sys.path[0] = str(folder)
    sys.modules.pop("handler", None)
    try:
        TsModelLoader().load("m", str(folder), "handler.py", None, 1)
        print(json.dumps([(folder / "handler.py").read_text(), ""]))
    except Exception as error:
        print(json.dumps([(folder / "handler.py").read_text(), f"{type(error).__name__}: {error}"]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What TorchServe's own loader says to each handler of this file: its refusal, or an empty text."""
    root = tmp_path_factory.mktemp("refusals")
    refused = [text for text, _, _ in REFUSED_SHAPES.values()]
    for i, text in enumerate([*refused, *ACCEPTED_SHAPES.values(), HIDDEN_CLASS, NO_LOAD_CALL, MASKED_IMPORT]):
        (root / str(i)).mkdir()
        lay(root / str(i), text)
    command = [sys.executable, "-B", "-c", LOADER, str(root)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    return dict(json.loads(line) for line in output.splitlines() if line.startswith("["))


@pytest.mark.parametrize("case", REFUSED_SHAPES)
def test_a_shape_that_torchserve_refuses_is_found(tmp_path: Path, refusals: dict[str, str], case: str) -> None:
    handler, rule, line = REFUSED_SHAPES[case]
    assert check(tmp_path, handler) == [(rule, "handler.py", line)]
    assert refusals[handler]


NEEDS_TORCH = "a base class of torchserve"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.tensors] if case == NEEDS_TORCH else []) for case in ACCEPTED_SHAPES]
)
def test_a_shape_that_torchserve_accepts_has_no_findings(tmp_path: Path, refusals: dict[str, str], case: str) -> None:
    assert check(tmp_path, ACCEPTED_SHAPES[case]) == []
    assert refusals[ACCEPTED_SHAPES[case]] == ""


def test_a_class_count_that_only_the_import_shows_is_found(tmp_path: Path, refusals: dict[str, str]) -> None:
    assert check(tmp_path, HIDDEN_CLASS) == [("one-class", "handler.py", 1)]
    assert "Expected only one class" in refusals[HIDDEN_CLASS]


def test_a_function_that_does_not_expect_the_call_at_load_is_found(tmp_path: Path, refusals: dict[str, str]) -> None:
    assert check(tmp_path, NO_LOAD_CALL) == [("load-call", "handler.py", 1)]
    assert "NoneType" in refusals[NO_LOAD_CALL]


def test_the_import_error_that_torchserve_masks_is_shown(tmp_path: Path, refusals: dict[str, str]) -> None:
    assert "No module named 'ts.torch_handler.handler" in refusals[MASKED_IMPORT]
    (found,) = check_handler(lay(tmp_path, MASKED_IMPORT))
    assert found.message.startswith("ImportError: cannot import name 'no_such_name' from 'json'")


def test_of_several_classes_the_handler_is_checked_all_the_same(tmp_path: Path) -> None:
    text = "class Mood:\n    pass\n" + GOOD.replace("def initialize", "def start")
    assert check(tmp_path, text) == [("no-initialize", "handler.py", 3), ("one-class", "handler.py", 3)]


def test_methods_are_inherited_from_modules_beside_the_handler(tmp_path: Path) -> None:
    files = {"base.py": GOOD, "half.py": "class Half:\n    def handle(self, data, context): return []\n"}
    assert check(tmp_path, "from base import Handler as Base\nclass Mine(Base):\n    pass\n", files) == []
    assert check(tmp_path, "import base\nclass Mine(base.Handler):\n    pass\n", files) == []
    found = check(tmp_path, "import half\n\nclass Mine(half.Half):\n    pass\n", files)
    assert found == [("no-initialize", "handler.py", 3)]


def test_methods_are_inherited_through_packages_that_pass_a_class_on(tmp_path: Path) -> None:
    for name, text in {
        "lib/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib.base import Handler\n"
        "def __getattr__(name): return getattr(__import__('lib.base').base, name)\n",
        "lib/base.py": GOOD,
        "lib/half.py": "from lib import base\nclass Half:\n    def handle(self, data, context): return []\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for line in ("from lib import Handler as H", "from lib.base import Handler as H", "from lib import base as H"):
        base = "H.Handler" if line.endswith("base as H") else "H"
        assert check(tmp_path, f"{line}\nclass Mine({base}):\n    pass\n") == []
    found = check(tmp_path, "from lib.half import Half\n\nclass Mine(Half):\n    pass\n")
    assert found == [("no-initialize", "handler.py", 3)]


def test_an_import_by_a_flat_name_that_our_modules_had_is_found_with_the_new_one(tmp_path: Path) -> None:
    text = "from base_handler import BaseHandler\n\n\nclass Mine(BaseHandler):\n    pass\n"
    (found,) = check_handler(lay(tmp_path, text))
    assert (found.rule, found.line, found.severity) == ("unresolved-import", 1, "error")
    assert "the module 'base_handler' is not beside the handler" in found.message
    assert found.fix == "write `from marsmith_handler import BaseHandler`"


def test_a_function_of_another_name_is_the_entry_point_where_it_is_named(tmp_path: Path) -> None:
    path = lay(tmp_path, "def answer(data, context):\n    return [] if data else None\n")
    assert check_handler(path, function="answer") == []
    assert shown(check_handler(path)) == [("one-class", "handler.py", 1)]


def body(lines: str, name: str = "handle(self, data, context)") -> str:
    start = GOOD.partition("    def handle")[0]
    return f"{start}    def {name}:\n        {lines}\n"


@pytest.mark.parametrize(
    "lines",
    ["return {'a': 1}", "return 'text'", "return", "return None", "return 1, 2", "yield 1", "pass", "return {1}"],
)
def test_a_reply_that_is_plainly_no_list_is_found(tmp_path: Path, lines: str) -> None:
    assert [(rule, line) for rule, _, line in check(tmp_path, body(lines))] in (
        [("returns-no-list", 6)],
        [("returns-no-list", 5)],
    )


@pytest.mark.parametrize("lines", ["return [1]", "return self.answer(data)", "raise ValueError('no')"])
def test_a_reply_that_may_be_a_list_is_not_found(tmp_path: Path, lines: str) -> None:
    assert check(tmp_path, body(lines)) == []


def test_a_return_of_an_inner_function_is_not_the_handlers(tmp_path: Path) -> None:
    assert check(tmp_path, body("def inner(): return 1\n        return [inner() for _ in data]")) == []


@pytest.mark.parametrize("name", ["handle(self, data)", "handle(self)", "handle(self, data, context, more)"])
def test_a_handle_that_torchserve_cannot_call_is_found(tmp_path: Path, name: str) -> None:
    assert check(tmp_path, body("return []", name)) == [("signature", "handler.py", 5)]


@pytest.mark.parametrize(
    "name", ["handle(self, *args)", "handle(self, data, context, more=1)", "handle(self, a, b=None)"]
)
def test_a_handle_that_torchserve_can_call_is_not_found(tmp_path: Path, name: str) -> None:
    assert check(tmp_path, body("return []", name)) == []


def test_an_async_handle_is_found(tmp_path: Path) -> None:
    text = GOOD.replace("    def handle", "    async def handle")
    assert check(tmp_path, text) == [("async-handle", "handler.py", 5)]


def test_import_problems_are_found_once_with_file_line_and_fix(tmp_path: Path) -> None:
    files = {"beside.py": "\nimport no_such_module\n", "json.py": ""}
    path = lay(tmp_path, f"import beside\nimport json\nfrom .beside import x\n{GOOD}", files)
    found = check_handler(path)
    assert shown(found)[-2:] == [("name-clash", "handler.py", 2), ("relative-import", "handler.py", 3)]
    assert [item for item in shown(found) if item[1] == "beside.py"] == [("unresolved-import", "beside.py", 2)]
    assert all(item.fix for item in found)


def test_an_import_error_is_found_where_it_happens(tmp_path: Path) -> None:
    files = {"beside.py": "import logging\n\nfrom json import no_such_name\n"}
    (found,) = check_handler(lay(tmp_path, "import beside\n" + GOOD, files))
    assert (found.rule, found.file, found.line) == ("import-fails", tmp_path / "beside.py", 3)
    assert "from json import no_such_name" in found.detail
    assert "importlib" not in found.detail


def test_an_error_at_import_is_found_at_its_line(tmp_path: Path) -> None:
    assert check(tmp_path, f"{GOOD}\n1 / 0\n") == [("import-fails", "handler.py", 8)]
    assert check(tmp_path, f"{GOOD}\nraise SystemExit(0)\n") == [("import-fails", "handler.py", 8)]


def test_a_module_that_ends_its_process_or_never_ends_is_found(tmp_path: Path) -> None:
    assert check(tmp_path, f"import os\n{GOOD}\nos._exit(0)\n") == [("import-fails", "handler.py", 1)]
    path = lay(tmp_path, f"import time\n{GOOD}\ntime.sleep(60)\n")
    (found,) = check_handler(path, timeout_s=1.5)
    assert "did not end within 1.5 s" in found.message


def test_a_file_that_is_not_python_is_found_at_its_line(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD + "def f(:\n") == [("not-python", "handler.py", 7)]
    found = check(tmp_path, "import beside\n" + GOOD, {"beside.py": "\n\nx ==\n"})
    assert found == [("not-python", "beside.py", 3)]


@pytest.mark.parametrize(
    "statement",
    [
        "print('[METRICS]HandlerTime.Milliseconds:1')",
        "print(f'[PID]{1}')",
        "print('hello: Torch worker started.')",
        "sys.stdout.write('[METRICS]x\\n')",
        "logging.info('[METRICS]%s', 1)",
        "print('first line\\n[METRICS]second')",
    ],
)
def test_what_the_frontend_reads_is_found(tmp_path: Path, statement: str) -> None:
    text = f"import logging, sys\n{GOOD}\n        {statement}\n"
    assert check(tmp_path, text) == [("frontend-print", "handler.py", 9)]


def test_other_prints_are_notes(tmp_path: Path) -> None:
    found = check_handler(lay(tmp_path, f"{GOOD}\n        print('see [METRICS]', data)\n"))
    assert shown(found) == [("print", "handler.py", 8)]
    assert found[0].severity == "note"


def test_what_is_printed_at_import_is_read_too(tmp_path: Path) -> None:
    text = f"import sys\n{GOOD}\nsys.__stdout__.write('[PID]' + '7' + chr(10))\n"
    assert check(tmp_path, text) == [("frontend-print", "handler.py", 1)]


def test_loading_without_weights_only_is_found(tmp_path: Path) -> None:
    calls = ["load('x')", "load('x', weights_only=False)", "load('x', weights_only=True)", "jit.load('x')"]
    lines = "".join(f"        torch.{call}\n" for call in calls)
    found = check(tmp_path, f"{GOOD}\n        import torch\n{lines}")
    assert found == [("unsafe-load", "handler.py", 9), ("unsafe-load", "handler.py", 10)]


@pytest.mark.parametrize(
    ("call", "rules"),
    [
        ("context.set_response_status(400, 'Ungültig', 0)", ["non-ascii-wire"]),
        ("context.set_response_status(code=400, phrase='Ungültig', idx=0)", ["non-ascii-wire"]),
        ("context.set_response_content_type(0, 'text/plain; title=é')", ["non-ascii-wire"]),
        ("context.set_response_header(0, 'X-Why', f'zu groß: {1}')", ["non-ascii-header"]),
        ("context.set_response_status(400, 'Bad Request', 0)", []),
    ],
)
def test_text_that_is_not_ascii_is_found(tmp_path: Path, call: str, rules: list[str]) -> None:
    assert check(tmp_path, f"{GOOD}\n        {call}\n") == [(rule, "handler.py", 8) for rule in rules]


def test_a_phrase_that_is_not_ascii_ends_a_real_worker(tmp_path: Path) -> None:
    phrase = "chr(252)"  # not a literal, so that the text does not show it
    text = GOOD.replace("return [", f"context.set_response_status(422, {phrase} * 20, 0)\n        return [")
    (found,) = check_archive(make_archive(tmp_path, text), requests=REQUESTS, batch_size=1)
    assert (found.rule, found.file) == ("batch-fails", Path("tiny_handler.py"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HandlerError, match="no file"):
        check_handler(tmp_path / "handler.py")


# Archives: TorchServe's own worker answers.

BYTES = "application/octet-stream"
REQUESTS = [TrialRequest("one.txt", b"one", BYTES), TrialRequest("two.txt", b"two", BYTES)]


def test_a_good_archive_has_no_findings(tmp_path: Path) -> None:
    assert check_archive(make_archive(tmp_path, GOOD), requests=REQUESTS) == []


def test_a_handler_that_returns_too_few_is_found_in_a_batch_only(tmp_path: Path) -> None:
    text = GOOD.replace("in data]", "in data[:1]]")
    archive = make_archive(tmp_path, text)
    (found,) = check_archive(archive, requests=REQUESTS)
    assert (found.rule, found.file, found.line) == ("reply-count", Path("tiny_handler.py"), 1)
    assert "a batch of 4" in found.message
    assert check_archive(archive, requests=REQUESTS, batch_size=1) == []


def test_a_handler_that_mixes_up_its_replies_is_found(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, GOOD.replace("in data]", "in reversed(data)]"))
    assert [item.rule for item in check_archive(archive, requests=REQUESTS)] == ["batch-changes-answers"]


def test_a_handler_that_fails_is_found_at_its_line(tmp_path: Path) -> None:
    text = "import helper\n" + GOOD.replace("return [", "return [helper.check(len(data)) or ")
    helper = "def check(count):\n    if count > 1:\n        raise ValueError('one at a time')\n"
    (found,) = check_archive(make_archive(tmp_path, text, files={"helper.py": helper}), requests=REQUESTS)
    assert (found.rule, found.file, found.line) == ("batch-fails", Path("helper.py"), 3)
    assert found.message == "answers a batch of 4 with status 503: ValueError: one at a time"


def test_a_handler_that_does_not_load_is_found_at_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("self.ready = True", "open('no-such-file')")
    (found,) = check_archive(make_archive(tmp_path, text), requests=REQUESTS)
    assert (found.rule, found.file, found.line) == ("load-fails", Path("tiny_handler.py"), 3)
    assert "no-such-file" in found.message


def test_an_archive_whose_text_has_errors_is_not_tried(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, GOOD.replace("def initialize", "def start"))
    assert shown(check_archive(archive, requests=REQUESTS)) == [("no-initialize", "tiny_handler.py", 1)]


def test_the_archives_own_examples_are_sent(tmp_path: Path) -> None:
    example = {"input": "one.txt", "content_type": BYTES, "status": 200, "tolerance": 0.0}
    examples = json.dumps([{**example, "reply": None, "reply_sha256": "0" * 64}])
    files = {"MAR-INF/examples/examples.json": examples, "MAR-INF/examples/one.txt": "one"}
    text = GOOD.replace("return [", "assert bytes(data[0]['body']) == b'one'\n        return [")
    assert check_archive(make_archive(tmp_path, text, files=files)) == []
    without = check_archive(make_archive(tmp_path / "other", text))
    assert [(item.rule, item.severity) for item in without] == [("not-tried", "note")]


# The command.


def test_the_command_prints_file_line_and_fix_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lay(tmp_path, GOOD.replace("def initialize", "def start"))
    assert main(["check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}:1: error: the class Handler has no initialize")
    assert lines[0].endswith("[no-initialize]")
    assert lines[1].strip() == "fix: write `def initialize(self, context)`, and load the model there"
    assert lines[-1] == "1 error"


def test_the_command_succeeds_where_there_are_only_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(lay(tmp_path, f"{GOOD}\n        print(1)\n"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 note"


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lay(tmp_path, f"{GOOD}class Other: pass\n")
    assert main(["check", str(path), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert [(item["rule"], item["file"], item["line"]) for item in result["findings"]] == [("one-class", str(path), 7)]


def test_the_command_takes_a_function_and_an_archive_with_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lay(tmp_path, "def answer(data, context):\n    return [] if data else None\n")
    assert main(["check", f"{path}:answer"]) == 0
    assert main(["check", str(path), "--input", str(path)]) == 2
    (tmp_path / "one.bin").write_text("one")
    archive = make_archive(tmp_path / "archive", GOOD)
    assert main(["check", str(archive), "--input", str(tmp_path / "one.bin"), "--batch-size", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing found"


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_explained(rule: str) -> None:
    text = (REPOSITORY / "docs" / "reference" / "lint-and-config.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{rule}` |")]
    assert f"| {RULES[rule]} |" in row
