"""A headless Chromium, driven over its own protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_ADDRESS = re.compile(rb"DevTools listening on (ws://\S+)")


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None

    async def command(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; events are passed over."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def open(self, url: str) -> None:
        """Open a page in a new tab of this browser."""
        target = await self.command("Target.createTarget", url=url)
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]

    async def run(self, script: str) -> Any:
        """Run JavaScript, wait for its promise, and return its value."""
        done = await self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, script: str) -> Any:
        """Run JavaScript until its value is true, and return it."""
        while not (value := await self.run(script)):
            await asyncio.sleep(0.05)
        return value

    async def close(self) -> None:
        """Close the browser, with all its processes."""
        self._session = None
        await self.command("Browser.close")

    async def picture(self) -> bytes:
        """Return the tab as PNG."""
        return base64.b64decode((await self.command("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browser(*, width: int = 900, height: int = 900) -> AsyncIterator[Page]:
    """Start Chromium, and end it at the end of the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        line += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        log = Path(profile) / "log.txt"
        with log.open("wb") as output:
            process = subprocess.Popen([*line, "about:blank"], stdout=output, stderr=output)
        try:
            while not (found := _ADDRESS.search(log.read_bytes())):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(found[1].decode(), max_msg_size=0) as socket,
            ):
                page = Page(socket)
                yield page
                await page.close()
        finally:
            process.terminate()
            process.wait()


def dropped(name: str, content: bytes, kind: str) -> str:
    """Return JavaScript that drops a file on the page."""
    data = json.dumps(base64.b64encode(content).decode())
    return f"""(() => {{
      const bytes = Uint8Array.from(atob({data}), character => character.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], {json.dumps(name)}, {{type: {json.dumps(kind)}}}));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", {{dataTransfer: transfer, bubbles: true}}));
    }})()"""
