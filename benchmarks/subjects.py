"""The models that serving is measured on, each in its fastest form that passes the gate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forms
from marsmith.project import Project

FITTED = "fitted"
# Model -> weights and form; an empty form is the one that its lock names. torchvision's hub is not reached from
# everywhere, so the weights of ResNet-18 are drawn at random and fitted to a few photos.
SUBJECTS: dict[str, tuple[str, dict[str, str]]] = {
    "efficientnet_lite0": ("recipe", {}),
    "resnet18": (FITTED, {"precision": "int8", "format": "auto", "engine": "auto"}),
}


def weights_of(model: str, folder: Path) -> str:
    """Return where the weights of a subject come from; those that are fitted are made in ``folder``."""
    weights, _ = SUBJECTS[model]
    if weights != FITTED:
        return weights
    file = folder / "fitted.pth"
    recipe = forms.REPOSITORY / "export" / f"{model}.py"
    fit = [sys.executable, str(forms.REPOSITORY / "benchmarks" / "export.py"), "fit", str(recipe), str(file)]
    subprocess.run(fit, check=True)
    return str(file)


def fast_archive(project: Project, model: str, weights: str) -> Path:
    """Build the archive of a subject in its fastest form; return its path."""
    return forms.build(project, model, weights=weights if weights != "recipe" else None, **SUBJECTS[model][1])
