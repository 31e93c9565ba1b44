"""Build a model archive from loose files, with torch-model-archiver's flags.

    marsmith pack --model-name classifier --version 1.0 --serialized-file model.pt --handler image_classifier

Prints the path of the archive. Weights are never deflated, an existing archive is kept unless --force is given, and two
different files of one name are an error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from marsmith.cli.output import byte_progress, note, say

FORMATS = ("tgz", "no-archive", "zip-store", "default")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add torch-model-archiver's arguments, and marsmith's own."""
    # torch-model-archiver accepts unambiguous prefixes of flags, and scripts may use them.
    parser.allow_abbrev = True
    add = parser.add_argument
    add("--model-name", required=True, metavar="NAME", help="name of the model; the archive is NAME.mar")
    add("--serialized-file", type=Path, metavar="FILE", help="TorchScript, a state dict, ONNX: the weights")
    add("--model-file", type=Path, metavar="FILE.py", help="the one class of an eager module")
    add("--handler", required=True, help="FILE.py, FILE.py:FUNCTION, or a handler of TorchServe")
    add("--extra-files", default="", metavar="PATHS", help="files, folders and wildcards, separated by commas")
    add("--runtime", default="python", choices=["python", "python3", "LSP"], help="default: python")
    add(
        "--export-path",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="created if missing; default: the working folder",
    )
    add("--archive-format", default="default", choices=FORMATS, help="zip-store gives the same bytes everywhere")
    add("-f", "--force", action="store_true", help="replace an existing archive")
    add("-v", "--version", required=True, help="version of the model, such as 1.0")
    add("-r", "--requirements-file", type=Path, metavar="FILE", help="pip requirements of the model")
    add("-c", "--config-file", type=Path, metavar="FILE.yaml", help="model config")
    add(
        "--keep-tree",
        action="store_true",
        help="keep the paths of --extra-files, relative to the working folder, instead of a flat layout",
    )


def run(args: argparse.Namespace) -> None:
    """Build the archive; print its path."""
    from marsmith.build.pack import PackRequest, pack

    fields = {key: value for key, value in vars(args).items() if key in PackRequest.__dataclass_fields__}
    request = PackRequest(**fields)
    with byte_progress(request.target.name) as on_progress:
        packed = pack(request, on_progress=on_progress)
    for text in packed.notes:
        note(text)
    say(str(packed.path))
