"""Pictures of one colour."""

from __future__ import annotations

from io import BytesIO

from PIL import Image


def picture(red: int, green: int, blue: int, *, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (red, green, blue)).save(stream, kind)
    return stream.getvalue()
