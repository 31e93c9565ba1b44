"""What the documentation claims that text alone can show: links, flags, names, and that its blocks are whole."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from contextlib import suppress
from pathlib import Path

import pytest

from marsmith.cli import VERBS, main, verb_parser
from pages.__main__ import outdated
from support.documentation import LANGUAGES, Block, Page, commands, matches, pages, read_page
from support.projects import REPOSITORY, copy_project

WIDTH = 120
DOCS = REPOSITORY / "docs"
# Flags of other programs that the pages name in prose.
FOREIGN_FLAGS = {
    *("--help", "--version"),
    *("--cacert", "--cov", "--durations", "--second-try", "--no-deps", "--quick", "--restart", "--shm-size"),
    *("--model-store", "--models", "--python", "--mlock", "--fork"),
}
BLOCKS = [block for page in pages() for block in page.blocks]
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def flags_of(verb: str) -> set[str]:
    return {flag for action in verb_parser(verb)._actions for flag in action.option_strings}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_link_leads_somewhere(page: Page) -> None:
    for line, target in page.links():
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.exists(), f"{page}:{line}: {target}"
        # The site has only the pages below docs/.
        assert not page.path.is_relative_to(DOCS) or file.is_relative_to(DOCS), f"{page}:{line}: {target}"
        assert not anchor or anchor in read_page(file).anchors(), f"{page}:{line}: {target}"


@pytest.mark.parametrize("page", pages(), ids=str)
def test_no_line_of_prose_is_wider_than_a_window(page: Page) -> None:
    """Code, tables and comments may be: they cannot be broken."""
    wide = [number for number, line in page.prose if len(line) > WIDTH and not line.startswith(("|", "<!--"))]
    assert not wide, f"{page}: {wide}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_names_its_language(block: Block) -> None:
    assert block.language in LANGUAGES


def test_no_page_has_blocks_by_indentation() -> None:
    """They name no language, and no test finds them."""
    for page in pages():
        before = ""
        for number, line in page.prose:
            assert not (re.match(r" {4}[^\s\-|]", line) and not before), f"{page}:{number}"
            before = line.strip()


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_marsmith_command_is_one(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(block.text):
        if words[0] != "marsmith":
            continue
        assert words[1] in VERBS, words
        with suppress(SystemExit):  # what argparse says is on stderr
            verb_parser(words[1]).parse_args(words[2:])
        assert not capsys.readouterr().err, words


@pytest.mark.parametrize("page", [page for page in pages() if page.path.name != "CHANGELOG.md"], ids=str)
def test_every_flag_that_prose_names_exists(page: Page) -> None:
    every = FOREIGN_FLAGS.union(*map(flags_of, VERBS))
    text = "\n".join(line for _, line in page.prose)
    for span in re.findall(r"`([^`]+)`", text):
        verb = re.match(r"marsmith\s+([a-z-]+)", span)
        known = flags_of(verb[1]) | {"--help"} if verb and verb[1] in VERBS else every
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)) - known
        foreign = not (verb or re.match(r"--", span)) or span.split()[0] in {"curl", "pip", "python"}
        assert foreign or not unknown, f"{page}: {span}"


@pytest.mark.parametrize("verb", VERBS)
def test_the_reference_names_every_verb_and_every_flag(verb: str) -> None:
    text = (REPOSITORY / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## marsmith {verb}\n")
    assert found
    section = rest.partition("\n## ")[0]
    missing = {flag for flag in flags_of(verb) - {"-h", "--help"} if f"`{flag}" not in section}
    assert not missing


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_python_block_compiles_and_its_imports_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "marsmith":
            module = importlib.import_module(node.module or "")
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{block}: {missing}"


@pytest.mark.parametrize("block", [*SHELL, *PYTHON], ids=str)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    """tests/live/test_docs_live.py runs those that carry no reason."""
    assert block.not_run is None or len(block.not_run) > 5


def test_a_command_is_found_behind_others_and_inside_of_them() -> None:
    script = (
        'A=1 marsmith stop && curl -H "X: $(marsmith token inference)" \\\n  -d @f http://h > out | cat  # marsmith\n'
    )
    assert commands(script) == [
        ["marsmith", "token", "inference"],
        ["marsmith", "stop"],
        ["curl", "-H", "X: SUBSTITUTED", "-d", "@f", "http://h"],
        ["cat"],
    ]


@pytest.mark.parametrize("example", ["mine.py", "mine.yaml"])
def test_the_finished_examples_are_those_of_the_tutorial(example: str) -> None:
    tutorial = read_page(REPOSITORY / "docs" / "tutorial" / "first-model.md")
    shown = {Path(block.file).name: block.text for block in tutorial.blocks if block.file}
    assert (REPOSITORY / "docs" / "examples" / example).read_text(encoding="utf-8") == shown[example]


def test_what_is_made_from_the_code_is_current() -> None:
    """`make pages` writes it."""
    assert not outdated(REPOSITORY / "docs")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("photo.jpg: 200 application/json, 168 bytes", "photo.jpg: 200 application/json, 91 bytes", True),
        ("photo.jpg: 200 application/json, 168 bytes", "photo.jpg: 503 application/json, 168 bytes", False),
        (
            '{"tiger cat": 0.395, "Egyptian cat": 0.354, ...}',
            '{"tiger cat": 0.3865, "Egyptian cat": 0.36, "x": 1}',
            True,
        ),
        ('{"tiger cat": 0.395, ...}', '{"Egyptian cat": 0.395, "x": 1}', True),
        ('{"tiger cat": 0.395, ...}', '{"tabby": 0.395, "x": 1}', False),
        ("a  1.0  2/2\n...\nz", "a    1.0  2/2\nb\nc\nz", True),
        ("a  1.0\n...", "a    1.0", True),
        ("a  1.0", "a  2.0", False),
        ("a", "a\nb", False),
        ("uptime  0:00:18\nsupervisor  pid 7, 0 restarts", "uptime  1:20:31\nsupervisor  pid 8123, 0 restarts", True),
    ],
)
def test_an_output_may_differ_in_what_differs_from_run_to_run_only(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


@pytest.mark.parametrize("page", pages(), ids=str)
def test_an_output_follows_a_block_that_is_run(page: Page) -> None:
    for before, block in itertools.pairwise([None, *page.blocks]):
        if block is not None and block.is_output:
            assert before is not None
            assert before.language in {"bash", "python"}, block
            assert before.not_run is None, block


def test_what_lint_finds_and_fixes_is_what_its_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = read_page(REPOSITORY / "docs" / "reference" / "lint-and-config.md")
    shown = [block.text for block in page.blocks if block.language == "text"][:2]
    project = copy_project(tmp_path / "project")
    config = project.server_config
    config.write_text(config.read_text(encoding="utf-8").replace("job_queue_size=", "job_que_size="), encoding="utf-8")
    monkeypatch.chdir(project.root)
    for text, arguments, code in zip(shown, (["lint"], ["lint", "--fix"]), (1, 0), strict=True):
        assert main(arguments) == code
        printed = capsys.readouterr()
        assert matches(text, printed.err + printed.out)
