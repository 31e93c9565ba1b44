"""The context that a handler gets, outside of TorchServe: every method and property of TorchServe's own (0.12.0).

It imports neither TorchServe nor torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marsmith.json_reader import read_json


class HandlerContext:
    """TorchServe's context for one worker and, after ``begin``, for one batch.

    Attributes:
        model_name: name in the manifest.
        manifest: ``MAR-INF/MANIFEST.json``, parsed.
        model_yaml_config: ``model-config.yaml``, parsed.
        system_properties: ``model_dir``, ``gpu_id``, ``batch_size`` and the rest, as TorchServe gives them.
        metrics: object that takes the handler's measurements; None: nobody takes them.
        response_headers: headers of each reply of the batch, by name.
    """

    def __init__(
        self,
        model_dir: Path | str,
        *,
        manifest: Mapping[str, Any] | None = None,
        model_yaml_config: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        gpu_id: int | None = None,
    ) -> None:
        self.manifest = dict(manifest) if manifest is not None else _read_manifest(Path(model_dir))
        self.model_name = str(self.manifest.get("model", {}).get("modelName", "model"))
        self.model_yaml_config = dict(model_yaml_config or {})
        self.system_properties = {
            "model_dir": str(model_dir),
            "gpu_id": gpu_id,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": "0.12.0",
            "limit_max_image_pixels": True,
        }
        self.metrics: Any = None
        self.stopping_criteria = None
        self.request_ids: dict[int, str] | None = None
        self.begin([], [])

    def begin(self, request_ids: Sequence[str], headers: Sequence[dict[str, Any]]) -> None:
        """Start a batch: the id of each request, and its headers by name."""
        self.request_ids = dict(enumerate(request_ids)) if request_ids else self.request_ids
        self._request_headers = headers
        self._statuses: list[tuple[int, str]] = [(200, "")] * len(headers)
        self.response_headers: list[dict[str, str]] = [{} for _ in headers]

    @property
    def statuses(self) -> list[int]:
        """HTTP status of each reply of the batch."""
        return [code for code, _ in self._statuses]

    @property
    def content_types(self) -> list[str | None]:
        """Content type of each reply of the batch; None if the handler has set none."""
        return [headers.get("content-type") for headers in self.response_headers]

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of a request of the batch."""
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """Return a header by its exact name; for the name of a field, a mapping with its ``content-type``."""
        return self._request_headers[idx].get(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """Return all headers of a request of the batch."""
        return self._request_headers[idx]

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type of a reply."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the content type of a reply."""
        return self.response_headers[idx].get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of a reply; raises ValueError for one that would corrupt TorchServe's wire protocol."""
        if not (key + value).isascii():
            raise ValueError(f"header {key!r}: {value!r} is not ASCII")
        self.response_headers[idx][key] = value

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers of a reply."""
        return self.response_headers[idx]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of a reply; raises ValueError for a phrase that would corrupt TorchServe's wire protocol."""
        if not phrase.isascii():
            raise ValueError(f"the phrase {phrase!r} is not ASCII")
        self._statuses[idx] = (code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of every reply of the batch."""
        for idx in range(len(self._statuses)):
            self.set_response_status(code, phrase, idx)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Return status and phrase of a reply."""
        return self._statuses[idx]


def decoded(body: bytes, content_type: str) -> Any:
    """Decode a body as TorchServe's worker does: JSON for exactly application/json, text for text/*, if at all."""
    if os.environ.get("TS_DECODE_INPUT_REQUEST", "true") != "true":
        return bytearray(body)
    if content_type == "application/json":
        try:
            return read_json(body)
        except ValueError:
            return bytearray(body)
    if content_type.startswith("text"):
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            return bytearray(body)
    return bytearray(body)


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "MAR-INF" / "MANIFEST.json"
    return dict(read_json(file.read_text(encoding="utf-8"))) if file.is_file() else {"model": {}}
