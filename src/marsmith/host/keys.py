"""The tokens of a host: a key file in TorchServe's form, and whether a request may pass."""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from marsmith import files
from marsmith.client.failures import INVALID_TOKEN

# A host's tokens are valid as long as it runs.
_NEVER = "9999-12-31T23:59:59Z"
_BEARER = b"bearer "
FILE_NAME = "key_file.json"
# TorchServe's text; it gives this error the status 400.
REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
REFUSED_KIND = INVALID_TOKEN


@dataclass(frozen=True)
class Keys:
    """Tokens by role; a request may give either of them, because a host changes nothing on request."""

    inference: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    management: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def allow(self, authorization: bytes | None) -> bool:
        """Return whether the value of an Authorization header has a valid token."""
        if authorization is None or authorization[: len(_BEARER)].lower() != _BEARER:
            return False
        given = authorization[len(_BEARER) :].strip()
        # Both are compared in any case, in a time that does not depend on the token.
        found = [hmac.compare_digest(given, key.encode()) for key in (self.inference, self.management)]
        return any(found)

    def write(self, folder: Path) -> Path:
        """Write the key file, readable only by its owner; return its path."""
        path = folder / FILE_NAME
        both = {"management": self.management, "inference": self.inference}
        content = {role: {"key": key, "expiration time": _NEVER} for role, key in both.items()}
        text = json.dumps({**content, "API": {"key": secrets.token_urlsafe(24)}}, indent=2)
        files.write_atomically(path, text + "\n", mode=0o600)
        return path
