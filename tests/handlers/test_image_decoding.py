"""Pictures of every kind against torchvision's reference, and bodies that are no pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import v2

from marsmith_handler.errors import ItemError
from marsmith_handler.image.decoding import decode_image
from marsmith_handler.image.formats import MAX_STRIPS, available_formats, open_image, sniff
from support import image_corpus as corpus

GOOD = corpus.good_images()
# Without AVX2 torch resizes in floats, and cuts bicubic overshoot off once; Pillow does so after each direction.
CUTS_OFF_LIKE_PILLOW = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
SHAPES = [(256, (224, 224)), (120, (100, 111)), (64, (64, 80)), (150, (150, 200)), (90, (224, 224))]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and lose much where tests run beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def upright_rgb(body: bytes) -> Image.Image:
    """The reference decoding: Pillow, upright, RGB; 16-bit gray by its upper byte."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


def reference_transform(resize: int, crop: tuple[int, int], interpolation: str) -> v2.Compose:
    mode = v2.InterpolationMode(interpolation)
    return v2.Compose([v2.Resize(resize, interpolation=mode, antialias=True), v2.CenterCrop(crop)])


def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    assert one.shape == other.shape
    return (one.int() - other.int()).abs()


def status(body: bytes) -> int:
    """What a client would get: 200, or the status of the refusal."""
    try:
        decode_image(body, resize=256, crop=(224, 224))
    except ItemError as error:
        return error.code
    return 200


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", GOOD)
def test_every_kind_gives_the_pixels_of_the_reference_transform_within_one(name: str, interpolation: Any) -> None:
    image = upright_rgb(GOOD[name])
    stored = v2.functional.pil_to_tensor(image)
    for resize, crop in SHAPES:
        ours = decode_image(GOOD[name], resize=resize, crop=crop, interpolation=interpolation)
        reference = reference_transform(resize, crop, interpolation)
        assert (ours.dtype, ours.shape, ours.is_contiguous()) == (torch.uint8, (3, *crop), True)
        assert distance(ours, reference(stored)).max() <= 1, (resize, crop)
        if interpolation == "bilinear" or CUTS_OFF_LIKE_PILLOW:
            off = distance(ours, v2.functional.pil_to_tensor(reference(image)))
            assert off.max() <= 2, (resize, crop)
            assert (off > 1).float().mean() <= 1e-3, "only single values, where both round a tie"


@pytest.mark.parametrize("name", [name for name in GOOD if name not in ("jpeg-ycck", "png-1-bit", "tiff-fax")])
def test_every_kind_shows_the_upright_photo(name: str) -> None:
    gray = "gray" in name
    photo = corpus.photo().convert("L").convert("RGB") if gray else corpus.photo()
    ours = decode_image(GOOD[name], resize=150, crop=(150, 200))
    assert distance(ours, v2.functional.pil_to_tensor(photo)).float().mean() < 9  # what 16 colours lose


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes_of_any_type_are_read_and_left_as_they_are(wrap: type) -> None:
    body = wrap(GOOD["jpeg"])
    assert decode_image(body, resize=64, crop=(64, 64)).shape == (3, 64, 64)
    assert bytes(body) == GOOD["jpeg"]


def test_several_threads_get_the_answers_of_one() -> None:
    bodies = list(GOOD.values()) * 2
    alone = [decode_image(body, resize=64, crop=(64, 64)) for body in bodies]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda body: decode_image(body, resize=64, crop=(64, 64)), bodies))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_good_pictures_leave_no_warning_and_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for body in GOOD.values():
            decode_image(body, resize=64, crop=(64, 64))
    assert [str(warning.message) for warning in seen] == []
    assert capfd.readouterr().err == ""


def test_a_warning_filter_that_raises_does_not_change_the_answers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert status(GOOD["png-palette-transparent"]) == 200
        assert status(GOOD["jpeg-broken-exif"]) == 200


def test_the_corpus_holds_300_malformed_payloads_and_more() -> None:
    payloads = corpus.malformed_payloads()
    assert len({name for name, _, _ in payloads}) == len(payloads) >= 300


def test_every_malformed_payload_is_refused_with_a_status_of_the_client() -> None:
    seen = {name: status(body) for name, body, _ in corpus.malformed_payloads()}
    assert {name: code for name, code in seen.items() if code not in (400, 413, 415, 422)} == {}


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "tiff-lzw", "jpeg-progressive"])
def test_a_truncated_picture_is_malformed_not_half_decoded(name: str) -> None:
    body = GOOD[name]
    assert [status(body[: len(body) * tenth // 10]) for tenth in range(1, 10)] == [400] * 9


def test_a_png_whose_download_stopped_and_left_zeros_is_refused() -> None:
    body = GOOD["png"]
    assert status(body[:1000] + bytes(len(body) - 1000)) == 400


def test_the_status_says_what_is_wrong() -> None:
    expected = {
        400: ("empty", "png-without-pixels", "png-zTXt-bomb"),
        415: ("html", "zip-as-png", "json-00", "heic"),
        413: (
            *("png-60000x60000", "png-10000x10000", "gif-65535x65535", "jpeg-65500x65500"),
            *("tiff-60000x60000", "bmp-60000x60000", "tiff-many-strips", "jpeg-many-scans"),
        ),
        422: ("png-1x500000", "jpeg-60000x1", "tiff-float", "tiff-32-bit"),
    }
    bodies = {name: body for name, body, _ in corpus.malformed_payloads()}
    assert {
        code: tuple(name for name in names if status(bodies[name]) == code) for code, names in expected.items()
    } == (expected)


def test_a_refusal_names_the_size_and_the_limit() -> None:
    with pytest.raises(ItemError, match=r"PNG picture is 200 x 150 pixels, more than the 20000 allowed") as refused:
        decode_image(GOOD["png"], resize=64, crop=(64, 64), max_pixels=20_000)
    assert (refused.value.code, refused.value.type) == (413, "ContentTooLarge")
    with pytest.raises(ItemError, match=r"more than the 100 allowed") as refused:
        decode_image(GOOD["png"], resize=64, crop=(64, 64), max_bytes=100)
    assert refused.value.code == 413


def test_a_refusal_is_the_same_each_time_so_that_replies_can_be_compared() -> None:
    for name, body, _ in corpus.malformed_payloads()[::7]:
        said = set()
        for _ in range(2):
            with pytest.raises(ItemError) as refused:
                decode_image(body, resize=256, crop=(224, 224))
            said.add(refused.value.message)
        assert len(said) == 1, name
        assert "object at 0x" not in said.pop(), name


def test_a_hundred_megabytes_are_refused_by_their_size() -> None:
    body = corpus.large_payload()
    with pytest.raises(ItemError) as refused:
        decode_image(body, resize=256, crop=(224, 224), max_bytes=20_000_000)
    assert refused.value.code == 413
    assert status(body) == 400


def test_damaged_pictures_are_answered_or_refused_and_nothing_else() -> None:
    seen = {name: status(body) for name, body, _ in corpus.doubtful_payloads()}
    assert set(seen.values()) <= {200, 400, 413, 415, 422}
    assert seen["jpeg-bit-flips-0"] in (200, 400)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([name for name in GOOD if name.partition("-")[0] != "avif"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=8),
)
def test_any_edit_of_a_picture_is_answered_or_refused(name: str, cuts: list[tuple[float, bytes, int]]) -> None:
    body = bytearray(GOOD[name])
    for place, inserted, removed in cuts:
        position = int(place * len(body))
        body[position : position + removed] = inserted
    assert status(bytes(body)) in (200, 400, 413, 415, 422)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.sampled_from([b"", *sorted({body[:12] for body in GOOD.values()})]),
    rest=st.binary(max_size=300),
)
def test_any_bytes_after_any_magic_are_answered_or_refused(magic: bytes, rest: bytes) -> None:
    assert status(magic + rest) in (200, 400, 413, 415, 422)


def test_the_format_is_told_by_the_bytes() -> None:
    for name, body in GOOD.items():
        assert sniff(body[:64]) == name.partition("-")[0].upper()
    assert [
        name for name, body, _ in corpus.malformed_payloads() if sniff(body[:64]) not in (*available_formats(), None)
    ] == []


def test_a_header_is_judged_without_decoding() -> None:
    body = corpus.tiff_header(100, MAX_STRIPS, strips=MAX_STRIPS)
    assert open_image(body, max_pixels=50_000_000, max_bytes=None).size == (100, MAX_STRIPS)
    with pytest.raises(ItemError) as refused:
        open_image(body, max_pixels=100 * MAX_STRIPS - 1, max_bytes=None)
    assert refused.value.code == 413


def test_a_picture_smaller_than_the_crop_is_set_in_black() -> None:
    white = corpus.encode(Image.new("RGB", (40, 40), "white"), "png")
    ours = decode_image(white, resize=40, crop=(60, 50))
    assert ours.shape == (3, 60, 50)
    assert ours[:, 10:50, 5:45].min() == 255
    assert ours.sum() == 3 * 40 * 40 * 255


def test_dct_scaling_changes_large_photos_a_little_and_small_ones_not_at_all() -> None:
    for width, height, most in ((400, 300, 0.0), (1919, 1281, 2.0)):
        body = corpus.encode(corpus.photo(width, height), "jpeg", quality=90)
        exact = decode_image(body, resize=224, crop=(224, 224))
        scaled = decode_image(body, resize=224, crop=(224, 224), dct_scaling=True)
        assert distance(exact, scaled).float().mean() <= most
        assert torch.equal(exact, scaled) == (most == 0.0)
