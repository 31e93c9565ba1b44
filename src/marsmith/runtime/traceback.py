"""Extract the Python traceback from a worker's output, reduced to the handler's frames.

TorchServe's own frames above the handler are dropped. When a handler's import fails, TorchServe looks for a built-in
handler of the same name, fails again and reports that second error last. The first error is used here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marsmith.error_text import useful_line

_START = "Traceback (most recent call last):"
_CUT_OFF = "(the traceback is cut off)"
_CHAINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# Lines that a worker prints after a traceback; other lines may belong to the exception's message.
_NOT_A_MESSAGE = ("[METRICS]", "Backend received inference", "Frontend disconnected")
_MESSAGE_LINES = 40
_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line \d+')
# Raised by a worker after it has logged that a handler raised a RuntimeError or ran out of memory at load.
_ANNOUNCEMENT = re.compile(r"RuntimeError: \d{3} - (Unknown exception|System out of memory)")
_MASK = re.compile(r"ModuleNotFoundError: No module named 'ts\.torch_handler\.(?P<handler>[^']+)'")


@dataclass(frozen=True)
class _Block:
    """One traceback of a chain: its frames with their source lines, the exception, and the link to the next one."""

    frames: tuple[tuple[str, ...], ...]
    exception: tuple[str, ...]
    link: str

    def from_first_frame_in(self, folder: str) -> _Block:
        first = next((i for i, frame in enumerate(self.frames) if _file(frame).startswith(folder)), 0)
        return _Block(self.frames[first:], self.exception, self.link)

    def text(self) -> str:
        return "\n".join([_START, *(line for frame in self.frames for line in frame), *self.exception])


def handler_traceback(lines: Sequence[str], folder: Path) -> str | None:
    """Return the last traceback in a worker's output, from the handler's first frame on.

    Args:
        lines: output of the worker.
        folder: folder of the archive's members; it is removed from the paths.

    Returns:
        The traceback with its chain; None if there is none.
    """
    chain = _unmasked(_last_chain(lines))
    if not chain:
        return None
    prefix = f"{folder}/"
    *causes, last = (block.from_first_frame_in(prefix) for block in chain)
    text = "".join(f"{block.text()}\n\n{block.link}\n\n" for block in causes) + last.text()
    return text.replace(f'"{prefix}', '"') + "\n"


def is_cut_off(traceback: str) -> bool:
    """Return whether a result of ``handler_traceback`` lacks the exception that ended the worker.

    It ends before the line of the exception, or holds only what a worker raises after it has logged the exception.
    """
    final = summary(traceback)
    return final == _CUT_OFF or _ANNOUNCEMENT.fullmatch(final) is not None


def summary(traceback: str) -> str:
    """Return the final exception of a traceback on one line: ``ValueError: bad``."""
    return useful_line("\n".join(_blocks(traceback.splitlines())[-1].exception))


def missing_handler(traceback: str) -> str | None:
    """Return the handler's name if the traceback says that no such module exists, in the archive or built in."""
    match = _MASK.match(summary(traceback))
    return match["handler"] if match else None


def _unmasked(chain: list[_Block]) -> list[_Block]:
    """Drop TorchServe's second search after a handler's own import failed."""
    mask = _MASK.match(chain[-1].exception[0]) if len(chain) > 1 else None
    if not mask:
        return chain
    own = mask["handler"].partition(":")[0].removesuffix(".py").rpartition("/")[2]
    before = chain[-2].exception[0]
    return chain if before == f"ModuleNotFoundError: No module named '{own}'" else chain[:-1]


def _last_chain(lines: Sequence[str]) -> list[_Block]:
    starts = [i for i, line in enumerate(lines) if line == _START]
    if not starts:
        return []
    if len(starts) > 1 and _ANNOUNCEMENT.fullmatch(_block(lines[starts[-1] :]).exception[0]):
        return _last_chain(lines[: starts[-1]])
    first = len(starts) - 1
    while first > 0 and any(line in _CHAINS for line in lines[starts[first - 1] : starts[first]]):
        first -= 1
    return _blocks(lines[starts[first] :])


def _blocks(lines: Sequence[str]) -> list[_Block]:
    starts = [i for i, line in enumerate(lines) if line == _START]
    ends = [*starts[1:], len(lines)]
    return [_block(lines[start:end]) for start, end in zip(starts, ends, strict=True)]


def _block(lines: Sequence[str]) -> _Block:
    frames: list[list[str]] = []
    rest = list(lines[1:])
    while rest and rest[0].startswith("  "):
        if _FRAME.match(rest[0]) or not frames:
            frames.append([])
        frames[-1].append(rest.pop(0))
    link = next((line for line in rest if line in _CHAINS), "")
    end = next((i for i, line in enumerate(rest) if line in _CHAINS or line.startswith(_NOT_A_MESSAGE)), len(rest))
    message = "\n".join(rest[: min(end, _MESSAGE_LINES)]).rstrip() or _CUT_OFF
    return _Block(tuple(tuple(frame) for frame in frames), tuple(message.split("\n")), link)


def _file(frame: tuple[str, ...]) -> str:
    match = _FRAME.match(frame[0])
    return match["file"] if match else ""
