"""Forms of the largest allowed size in many fields, as the frontend passes them on to a worker.

Run as a program, it prints for each form what it costs a worker until its refusal, in a process of its own: the
processor's seconds and the memory in MiB.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZE = 16 * 1024 * 1024
Field = tuple[bytes, bytes, bytes]  # name, content type, value


def urlencoded(*fields: tuple[int, int]) -> tuple[list[Field], int]:
    """Return fields of these sizes of name and value, and the bytes that they take in a body: ``a=v&``."""
    sizes = [name + (1 + value if value else 0) + 1 for name, value in fields]
    return [(b"n" * name, b"", b"v" * value) for name, value in fields], sum(sizes)


def multipart(name: int, content_type: bytes, value: int) -> tuple[list[Field], int]:
    head = b'--b\r\nContent-Disposition: form-data; name=""\r\n'
    typed = b"Content-Type: " + content_type + b"\r\n" if content_type else b""
    return [(b"n" * name, content_type, b"v" * value)], len(head + typed) + name + value + 4


def grpc(name: int, value: int) -> tuple[list[Field], int]:
    """A field of ``map<string, bytes>``: each of its entry, key and value is behind a tag and a length."""
    return [(b"n" * name, b"", b"v" * value)], 6 + name + value


FORMS: dict[str, tuple[list[Field], int]] = {
    **{f"names of {size}": urlencoded((size, 0)) for size in (1, 2, 4, 8, 16, 63, 64, 200)},
    **{f"values of {size}": urlencoded((1, size)) for size in (1, 2, 4, 8, 16, 63, 64, 200)},
    "names and values of 1 to 16": urlencoded(*((size, 17 - size) for size in range(1, 17))),
    "names of 1 and 2": urlencoded((1, 0), (2, 0)),
    "names of 1 and 64": urlencoded((1, 0), (64, 0)),
    "names of 3 and values of 64": urlencoded((3, 0), (3, 0), (1, 64)),
    "multipart": multipart(1, b"", 0),
    "multipart with types": multipart(1, b"image/png", 1),
    "multipart with long types": multipart(1, b"t" * 64, 1),
    "gRPC": grpc(3, 0),
    "gRPC with values": grpc(3, 13),
}


def wire(fields: Sequence[Field]) -> bytes:
    """Return fields as a worker gets them."""
    return b"".join(len(part).to_bytes(4, "big") + part for field in fields for part in field)


def message(form: tuple[list[Field], int], size: int = SIZE) -> bytes:
    """Return a batch of one request: a form whose body has ``size`` bytes."""
    fields, length = form
    end = b"\xff" * 4
    return b"I" + wire([(b"id", b"", b"")])[:6] + end + wire(fields) * (size // length) + end * 2


def cost(data: bytes, work: Callable[[socket.socket], Any]) -> dict[str, Any]:
    """Return what ``work`` took to read the data from a socket, in a process of its own."""
    theirs, ours = socket.socketpair()
    child = os.fork()
    if child == 0:
        theirs.close()
        ours.sendall(data)
        os._exit(0)
    ours.close()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _memory("VmRSS"), time.process_time()
    found = work(theirs)
    spent = time.process_time() - began
    os.waitpid(child, 0)
    return {"seconds": round(spent, 2), "mib": round((_memory("VmHWM") - before) / 1024), "answer": found}


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def main() -> None:
    """Print the cost of each form."""
    from ts.protocol import otf_message_handler

    from marsmith_handler.envelope import open_envelope
    from marsmith_handler.errors import ItemError
    from marsmith_handler.worker_messages import bound_fields

    def answer(connection: socket.socket) -> int:
        _, (request,) = otf_message_handler.retrieve_msg(connection)
        try:
            open_envelope({one["name"]: one["value"] for one in request["parameters"]}, {})
        except ItemError as error:
            return error.code
        return 200

    bound_fields(256)
    for name, form in FORMS.items():
        count = SIZE // form[1] * len(form[0])
        print(json.dumps({"form": name, "fields": count, **cost(message(form), answer)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
