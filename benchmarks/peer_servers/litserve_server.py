"""LitServe: ``decode_request`` takes the payload, ``batch`` decodes in threads, ``predict`` runs the model.

As in its documentation and its own benchmark against FastAPI. ``option``: ``fast_queue`` uses ZeroMQ, which it advises
from 100 requests per second on.
"""

from typing import Any

import litserve

from peer_servers.peer_model import PeerModel, from_base64, read_settings


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """One photo in a request, as a form field ``image`` or as base64 in JSON under ``image_data``."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model, in a worker."""
        self.model = PeerModel(read_settings())

    # LitServe hands these annotations to FastAPI as they stand: without any, the request comes as a mapping.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """Return the photo's bytes."""
        if "image_data" in request:
            return from_base64(request["image_data"])
        return request["image"].file.read()

    def batch(self, inputs: list[bytes]) -> list[Any]:
        """Decode the photos of a batch."""
        return self.model.decode(inputs)

    def predict(self, x: Any) -> Any:
        """Run the model."""
        return self.model.infer(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Give each photo its own result."""
        return output

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """Return the labels."""
        return self.model.encode(output)


class OneByOne(Classifier):
    """The same without batches."""

    batch = litserve.LitAPI.batch
    unbatch = litserve.LitAPI.unbatch

    def predict(self, x: bytes) -> Any:
        """Decode one photo and run the model."""
        return self.model.infer(self.model.decode([x]))[0]


def main() -> None:
    """Serve until ended."""
    settings = read_settings()
    if settings.batch_size > 1:
        api: Classifier = Classifier(max_batch_size=settings.batch_size, batch_timeout=settings.timeout_ms / 1000)
    else:
        api = OneByOne()
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=settings.workers, fast_queue=settings.option == "fast_queue"
    )
    server.run(host="127.0.0.1", port=settings.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
