"""What the handlers for images of one size have in common: how a request becomes a tensor."""

from __future__ import annotations

from typing import Any

import torch

from base_handler import BaseHandler
from image_decoding import MAX_PIXELS, decode_image
from model_request import Request


class ImageHandler(BaseHandler):
    """Takes images: raw, in a form, as base64 in JSON, one or several in a request.

    Settings: ``resize``, ``crop``, ``interpolation``, ``max_image_pixels``, ``dct_scaling``.
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
            "max_pixels": int(self.config.get("max_image_pixels", MAX_PIXELS)),
            "dct_scaling": bool(self.config.get("dct_scaling", False)),
        }

    def warm_up_item(self) -> torch.Tensor:
        """Return a grey image."""
        return torch.full((3, *self.crop), 127, dtype=torch.uint8)

    def decode(self, request: Request) -> torch.Tensor:
        """Decode an image to uint8 (3, H, W), RGB."""
        return decode_image(request.as_bytes(), **self.decoding)
