"""marsmith takes a PyTorch model from weights to a version that answers requests.

Names are resolved on first use, so that importing the package is fast and never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.archive import Archive
    from marsmith.client import AsyncClient, Client
    from marsmith.errors import MarsmithError
    from marsmith.runtime import Runner

__version__ = "0.1.0"

__all__ = ["Archive", "AsyncClient", "Client", "MarsmithError", "Runner", "__version__"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Archive": "marsmith.archive",
        "AsyncClient": "marsmith.client",
        "Client": "marsmith.client",
        "MarsmithError": "marsmith.errors",
        "Runner": "marsmith.runtime",
    },
)
