"""Reading a model's spec from a project's disk."""

from __future__ import annotations

from marsmith.config.model_spec import ModelSpec, parse_model_spec
from marsmith.errors import SpecError
from marsmith.project import Project


def load_spec(project: Project, model: str) -> ModelSpec:
    """Read and validate ``config/models/<model>.yaml``.

    Raises:
        UsageError: there is no such spec.
        SpecError: it does not follow the format, or names another model than its file does.
    """
    path = project.spec(model)
    source = str(path.relative_to(project.root))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(source, [f"not UTF-8: {error}"]) from None
    spec = parse_model_spec(text, source)
    if spec.name != model:
        raise SpecError(source, [f"name is {spec.name!r}, but the file is called {path.name}"], tip="make them equal")
    return spec
