"""Export a model's weights to a serialized file: TorchScript that takes uint8 images and returns probabilities.

    marsmith export efficientnet_lite0
    marsmith export resnet18 --weights resnet18.pth

The export lies in .marsmith/exports/MODEL/. Nothing is done when nothing changed since the last one.
"""

from __future__ import annotations

import argparse

from marsmith.cli.output import add_json_flag, note, print_fields, print_json


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``, shared by the verbs that export."""
    parser.add_argument(
        "--weights",
        metavar="SOURCE",
        help="instead of the spec's: a .pth or .safetensors file, recipe, hub, or random (which the archive records)",
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith export``."""
    parser.add_argument("model", metavar="MODEL", help="a model with a spec in config/models")
    add_weights_flag(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Export, and print where the file is and how far it is from the eager module."""
    from marsmith.export import export_model
    from marsmith.project_spec import load_spec
    from marsmith.settings import find_project

    project = find_project()
    export = export_model(project, load_spec(project, args.model), weights=args.weights, on_step=note)
    if args.json:
        print_json({"file": str(export.serialized_file), "reused": export.reused, **export.report})
        return
    parity = export.report["parity"]
    print_fields(
        {
            "file": export.serialized_file,
            "size": f"{export.serialized_file.stat().st_size:,} bytes",
            "weights": ", ".join(f"{key} {value}" for key, value in export.report["weights"].items()),
            "parity": f"error below {parity['maxAbsErrorBelow']:g}, top-1 agreement {parity['top1Agreement']:g}"
            f" over {parity['samples']} samples",
            "state": "unchanged since the last export" if export.reused else "new",
        }
    )
