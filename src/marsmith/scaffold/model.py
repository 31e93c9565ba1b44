"""Model of a new project: files of its spec, its recipe and its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from marsmith.scaffold.template import NewFile

CLASSIFIER = "handlers/image_classifier_handler.py"
TENSORS = "handlers/tensor_handler.py"
# Photos in an installed package.
PHOTOS = ("package:skimage/data/chelsea.png", "package:skimage/data/coffee.png")


@dataclass(frozen=True)
class NewModel:
    """The part of a new project that belongs to its model.

    Attributes:
        name: name of the model.
        files: its spec, and the files that the spec names.
        extras: extras of marsmith that the recipe needs, besides ``all``.
        notes: hints for the user, one sentence each.
        packages: further packages, as lines of requirements.txt.
    """

    name: str
    files: tuple[NewFile, ...]
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpecText:
    """The variable parts of a spec.

    Attributes:
        name: name of the model.
        description: text for people.
        recipe, weights: the keys of ``export``.
        weights_comment: comment on the weights.
        handler: entry point of the handler.
        examples: inputs of the examples.
        examples_comment: comment on their source.
        export_keys: further keys of ``export``, in order.
        batch_size: TorchServe's batch size; None: the default.
    """

    name: str
    description: str
    recipe: str
    weights: str
    weights_comment: str
    handler: str
    examples: Sequence[str]
    examples_comment: str
    export_keys: Sequence[tuple[str, str]] = ()
    batch_size: int | None = None

    def file(self) -> NewFile:
        """Return the spec."""
        return NewFile(f"config/models/{self.name}.yaml", self.render())

    def render(self) -> str:
        """Return the text of the spec."""
        keys = "".join(f"  {key}: {value}\n" for key, value in self.export_keys)
        serving = f"serving:\n  batchSize: {self.batch_size}\n" if self.batch_size else ""
        examples = "".join(f"  - input: {_text(one)}\n" for one in self.examples)
        return (
            "# yaml-language-server: $schema=../model-spec.schema.json\n"
            "# What this version is, and how it is made and run. Editors that read the schema explain every key.\n"
            f"name: {_text(self.name)}\n"
            'version: "1.0"\n'
            f"description: {_text(self.description)}\n"
            "\n"
            "export:\n"
            f"  recipe: {_text(self.recipe)}\n"
            f"  # {self.weights_comment}\n"
            f"  weights: {_text(self.weights)}\n"
            f"{keys}"
            "\n"
            "handler:\n"
            f"  entry_point: {self.handler}\n"
            "\n"
            f"# {self.examples_comment}\n"
            "examples:\n"
            f"{examples}"
            "\n"
            "# Workers and batches are the defaults. To measure better ones:\n"
            f"# marsmith tune {self.name} --p99-ms 50 --write\n"
            f"{serving}"
        )


def image_spec(name: str, description: str, recipe: str, weights: str, weights_comment: str) -> SpecText:
    """Return the spec of an image classifier."""
    comment = (
        "Photos of ImageNet's kind, which a package carries: name some of your own, with what they must show (expect)."
    )
    return SpecText(name, description, recipe, weights, weights_comment, CLASSIFIER, PHOTOS, comment)


def _text(value: str) -> str:
    """Return a text as YAML; JSON strings are valid YAML."""
    return json.dumps(value, ensure_ascii=False)
