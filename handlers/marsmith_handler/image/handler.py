"""Base class of the image handlers: decodes requests to tensors and limits their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from marsmith_handler import watched
from marsmith_handler.base import BaseHandler
from marsmith_handler.errors import ItemError
from marsmith_handler.image.decoding import decode_image
from marsmith_handler.image.formats import MAX_PIXELS, open_image, usual_pixels
from marsmith_handler.request import Request, check_total


class ImageHandler(BaseHandler):
    """Takes images: raw, in a form, as base64 in JSON, one or several in a request.

    Settings: ``resize``, ``crop``, ``interpolation``, ``max_image_pixels``, ``max_request_pixels``,
    ``dct_scaling``.
    """

    def load(self) -> None:
        """Load the model and the settings."""
        super().load()
        height, width = self.config.get("crop", (224, 224))
        self.crop = (int(height), int(width))
        self.decoding: dict[str, Any] = {
            "resize": int(self.config.get("resize", 256)),
            "crop": self.crop,
            "interpolation": str(self.config.get("interpolation", "bilinear")),
            "max_pixels": _whole(self.config.get("max_image_pixels")),
            "dct_scaling": bool(self.config.get("dct_scaling", False)),
        }
        self.max_request_pixels = _whole(self.config.get("max_request_pixels"))

    def warm_up_item(self) -> torch.Tensor:
        """Return a grey image."""
        return torch.full((3, *self.crop), 127, dtype=torch.uint8)

    def check_together(self, requests: Sequence[Request]) -> None:
        """Refuse images that have too many pixels together."""
        check_pixels(requests, max_pixels=self.decoding["max_pixels"], together=self.max_request_pixels)

    def decode(self, request: Request) -> torch.Tensor:
        """Decode an image to uint8 (3, H, W), RGB."""
        return decode_image(request.as_bytes(), **self.decoding)

    def watch(self, request: Request, item: torch.Tensor, reply: Any) -> Mapping[str, float | str]:
        """Describe the picture as well as the reply."""
        return {**watch_picture(request, item), **watched.of_classes(reply)}


def watch_picture(request: Request, item: torch.Tensor) -> Mapping[str, float | str]:
    """Describe a picture: its file, with ``width`` and ``height`` as sent, and what was decoded from it."""
    body = request.as_bytes()
    found = watched.of_picture(item.cpu().numpy())
    image = open_image(body, max_pixels=None, max_bytes=None)
    return {**found, "width": float(image.width), "height": float(image.height), "bytes": float(len(body))}


def check_pixels(requests: Sequence[Request], *, max_pixels: int | None, together: int | None) -> None:
    """Raise ContentTooLarge if pictures have too many pixels together.

    Args:
        requests: one picture each; one that cannot be opened is skipped here: decoding raises its error.
        max_pixels: maximum of each picture; see ``open_image``.
        together: maximum of all pictures; the setting ``max_request_pixels``. None: as many as one picture may have.
            Without ``max_pixels`` each picture counts as its share of the maximum for its format.
    """
    most = max(MAX_PIXELS, max_pixels or 0) if together is None else together
    weighed = together is None and max_pixels is None
    counts = (_pixels(one, max_pixels, weighed=weighed) for one in requests)
    unit = "pixels (four times those that are not of a baseline JPEG)" if weighed else "pixels"
    check_total(counts, most, unit, "max_request_pixels")


def _pixels(request: Request, max_pixels: int | None, *, weighed: bool) -> int:
    with suppress(ItemError):
        image = open_image(request.as_bytes(), max_pixels=max_pixels, max_bytes=None)
        return image.width * image.height * (MAX_PIXELS // usual_pixels(image) if weighed else 1)
    return 0


def _whole(setting: object) -> int | None:
    return None if setting is None else int(str(setting))
