"""BentoML: a service with adaptive batching, which takes images in a form, as its documentation has it.

Run by ``bentoml serve peer_servers.bentoml_service:Service``. Without batches it takes the image as the raw body.
"""

from __future__ import annotations

from typing import Any

import bentoml
from PIL.Image import Image

from peer_servers.peer_model import PeerModel, read_settings

settings = read_settings()
CONFIG: dict[str, Any] = {
    "workers": settings.workers,
    "traffic": {"timeout": 60},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}


def bytes_of(image: Image) -> bytes:
    """Return the file behind an image that Pillow has opened but not decoded."""
    file: Any = getattr(image, "fp", None)
    file.seek(0)
    data: bytes = file.read()
    return data


# With annotations as text, BentoML finds no types: they are set as objects below.
class Batched:
    """Batches of photos."""

    def __init__(self) -> None:
        self.model = PeerModel(settings)

    def predict(self, images: Any) -> Any:
        """Answer a batch."""
        return self.model.classify([bytes_of(image) for image in images])


class OneByOne:
    """One photo a request, as the raw body."""

    def __init__(self) -> None:
        self.model = PeerModel(settings)

    def predict(self, image: Any, /) -> Any:
        """Answer one."""
        return self.model.classify([bytes_of(image)])[0]


if settings.batch_size > 1:
    Batched.predict.__annotations__ = {"images": list[Image], "return": list[dict[str, float]]}
    Batched.predict = bentoml.api(  # type: ignore[method-assign]
        Batched.predict, batchable=True, max_batch_size=settings.batch_size, max_latency_ms=int(settings.timeout_ms)
    )
    Service: Any = bentoml.service(Batched, name="peer", **CONFIG)
else:
    OneByOne.predict.__annotations__ = {"image": Image, "return": dict[str, float]}
    OneByOne.predict = bentoml.api(OneByOne.predict)  # type: ignore[method-assign]
    Service = bentoml.service(OneByOne, name="peer", **CONFIG)
