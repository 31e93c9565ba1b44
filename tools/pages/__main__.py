"""Write what the documentation takes from the code: `python tools/pages`, or `python tools/pages --check`.

The command line, the Python API and the metrics are whole pages. The drawing of the packages lies between two markers
of the design page. Every page ends with links to the pages before and after it, in the order of the index,
docs/README.md; the site has the same order.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pages import api, cli, drawing, metrics, navigation

REPOSITORY = Path(__file__).resolve().parents[2]


def generated(docs: Path) -> dict[Path, str]:
    """Return the text that each page in ``docs`` should have."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(docs.rglob("*.md"))}
    pages[docs / "reference" / "cli.md"] = cli.page()
    pages[docs / "reference" / "python-api.md"] = api.page()
    pages[docs / "reference" / "metrics.md"] = metrics.page()
    design = docs / "explanation" / "design.md"
    pages[design] = drawing.insert(pages[design])
    index = docs / "README.md"
    config = docs.parent / "mkdocs.yml"
    site = navigation.site(config.read_text(encoding="utf-8"), pages[index])
    return navigation.add(pages, index) | {config: site}


def outdated(docs: Path) -> list[Path]:
    """Return the pages in ``docs`` that are not as the code says."""
    return [path for path, text in generated(docs).items() if not path.exists() or path.read_text("utf-8") != text]


def main() -> int:
    """Write the pages, or with ``--check`` name those that are not current; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not current")
    check = parser.parse_args().check
    docs = REPOSITORY / "docs"
    texts = generated(docs)
    for path in outdated(docs):
        print(path.relative_to(REPOSITORY))
        if not check:
            path.write_text(texts[path], encoding="utf-8")
    return int(check and bool(outdated(docs)))


if __name__ == "__main__":
    raise SystemExit(main())
