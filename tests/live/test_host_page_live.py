"""The page of a host in a real browser, and its description for tools."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import Page, browser, dropped
from support.debian import needs
from support.host_server import RunningHost, running_host
from support.live_server import tiny_archive
from support.pictures import picture
from support.raw_calls import call

# Labels for a photo, and an echo for everything else.
HANDLER = """
import json

def handle(data, context):
    if data is None:
        return
    body = data[0]["body"]
    if isinstance(body, bytearray) and body[:4] == b"\\x89PNG":
        return [{"cat <b>": 0.75, "dog": 0.25}]
    if body == "refuse":
        context.set_response_status(422, "Unprocessable", 0)
    return [json.dumps({"body": body})]
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    folder = tmp_path_factory.mktemp("page")
    with running_host(folder / "run", [tiny_archive(folder / "pets.mar", name="pets", handler=HANDLER)]) as running:
        yield running


def text_of(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


async def sent(page: Page) -> str:
    """Press the button, and return the status that the page shows."""
    await page.run("document.getElementById('status').textContent = ''; document.getElementById('send').click()")
    return str(await page.until(text_of("status")))


@needs("chromium")
def test_a_photo_a_text_and_a_tensor_are_tried_in_a_browser(host: RunningHost, tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        async with browser() as page:
            await page.open(f"{host.state.url}/")
            await page.until("document.querySelectorAll('#model option').length === 2")
            await page.run(f"document.getElementById('token').value = {json.dumps(host.key())}")
            await page.run(dropped("pet.png", picture(200, 0, 0), "image/png"))
            seen: dict[str, Any] = {"photo": await sent(page)}
            rows = (
                "[...document.querySelectorAll('#answer tr')].map(row => [...row.cells].map(cell => cell.textContent))"
            )
            seen["labels"] = await page.run(rows)
            seen["widths"] = await page.run("[...document.querySelectorAll('td.bar div')].map(bar => bar.style.width)")
            seen["curl"] = await page.run(text_of("curl"))
            for name, text in (("tensor", "[[1, 2]]"), ("text", "refuse")):
                area = "document.getElementById('text')"
                await page.run(f"{area}.value = {json.dumps(text)}; {area}.dispatchEvent(new Event('input'))")
                seen[name] = await sent(page), await page.run(text_of("answer"))
            await page.run("document.getElementById('token').value = 'wrong'")
            seen["wrong token"] = await sent(page)
            return seen

    seen = asyncio.run(run())
    assert re.fullmatch(r"200, \d+ ms", seen["photo"])
    assert seen["labels"] == [["cat <b>", "", "0.7500"], ["dog", "", "0.2500"]]
    assert seen["widths"] == ["75%", "25%"]
    status, answer = seen["tensor"]
    assert (status[:3], json.loads(answer)) == ("200", {"body": [[1, 2]]})
    assert seen["text"][0].startswith("422")
    assert seen["wrong token"].startswith("400")
    # The line works where it says.
    (tmp_path / "pet.png").write_bytes(picture(200, 0, 0))
    line = seen["curl"].replace("$TOKEN", host.key()).replace("\\\n", " ")
    answered = subprocess.run([*shlex.split(line), "-s"], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(answered.stdout) == {"cat <b>": 0.75, "dog": 0.25}


def test_the_page_runs_no_script_but_its_own(host: RunningHost) -> None:
    page = call(host.state.url, "GET", "/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert b"http" not in re.sub(rb"<script>.*</script>", b"", page.body, flags=re.DOTALL)


def test_openapi_describes_the_paths_of_each_version(host: RunningHost) -> None:
    described = json.loads(call(host.state.url, "GET", "/openapi.json").body)
    assert described["openapi"] == "3.1.0"
    assert {"/predictions/pets", "/predictions/pets/1.0", "/v2/models/pets/infer"} <= described["paths"].keys()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            body: dict[str, Any] = {"body": b"x", "headers": {"Content-Type": "text/plain"}}
            body = body if method == "post" else {}
            answer = call(host.state.url, method.upper(), path, host.key(), **body)
            assert str(answer.status) in operation["responses"] or "default" in operation["responses"], path
            assert answer.status == 200, path
