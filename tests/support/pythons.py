"""The Pythons of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path


def pythons() -> list[str]:
    """Every Python 3.11 to 3.13 on this machine."""
    found = []
    for minor in range(11, 14):
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        on_path = shutil.which(f"python3.{minor}")
        found += [str(installed[-1])] if installed else [on_path] if on_path else []
    return found
