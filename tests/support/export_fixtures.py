"""A tiny network, its recipe and its spec: exported in a moment, in every form."""

from __future__ import annotations

from pathlib import Path

from marsmith.export.measure import Effort
from marsmith.project import Project

RECIPE = """\
import torch
from marsmith.export import ImagePreprocessing, Recipe

class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))

RECIPE = Recipe(build=Tiny, preprocessing=ImagePreprocessing(resize=16, crop=(8, 8)), labels=lambda: list("abcd"))
"""
# Large enough that engines differ in speed, and confident enough that precisions agree.
NETWORK = """\
import torch
from torch import nn
from marsmith.export import ImagePreprocessing, Recipe

def build():
    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU6())
    net = nn.Sequential(block(3, 16), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        net[4].weight.mul_(20)
    return net

RECIPE = Recipe(build=build, preprocessing=ImagePreprocessing(resize=32, crop=(32, 32)), labels=lambda: list("abcd"))
"""
SPEC = """\
name: tiny
version: "1.0"
export: {recipe: export/tiny.py, weights: random}
handler: {entry_point: handlers/image_classifier_handler.py}
examples: [{input: "package:skimage/data/chelsea.png"}]
"""
QUICK = Effort(rounds=2, turn_s=0.01)


def write_tiny(project: Project, *, recipe: str = RECIPE, export: str = "") -> Project:
    """Add the tiny model to a project; ``export`` is added to its export block."""
    (project.root / "export" / "tiny.py").write_text(recipe)
    spec = SPEC.replace("weights: random", f"weights: random, {export}") if export else SPEC
    (project.specs / "tiny.yaml").write_text(spec)
    return project


def lock_text(project: Project) -> str:
    """Return the text of the tiny model's lock."""
    return Path(project.specs / "tiny.lock").read_text()
