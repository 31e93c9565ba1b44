"""Programs of Debian packages that tests run; `make test-tools` installs them."""

from __future__ import annotations

import shutil

import pytest

# Program -> its package, one of tests/debian.txt.
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "chromium": "chromium",
    "amtool": "prometheus-alertmanager",
}


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test unless these programs are installed."""
    missing = sorted({PACKAGES[program] for program in programs if shutil.which(program) is None})
    reason = f"Debian's {' and '.join(missing)} not installed: make test-tools"
    return pytest.mark.skipif(bool(missing), reason=reason)
