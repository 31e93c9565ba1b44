"""Archives of small classifiers, packed as a user does, with the handler that we ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from marsmith.build.pack import PackRequest, pack
from support.handler_fixtures import CLASSES, write_model
from support.projects import REPOSITORY

HANDLER = REPOSITORY / "handlers" / "image_classifier_handler.py"
_INFER = "        probabilities = self.model("


def pack_classifier(work: Path, model: str, version: str, module: torch.nn.Module, *, at_infer: str = "") -> Path:
    """Pack a classifier of colours, with no prediction log in its settings; return the archive, in ``work``.

    Args:
        work: a folder of its own.
        model: model name.
        version: version.
        module: the model.
        at_infer: a line that the handler executes first for each batch; ``self.calls`` is the number of batches.
    """
    write_model(work, module)
    handler_file = _faulty(work, at_infer) if at_infer else HANDLER
    (work / "index_to_name.json").write_text(json.dumps(dict(enumerate(CLASSES))), encoding="utf-8")
    handler = {"warm_up_s": 0.001, "resize": 16, "crop": [16, 16], "top_k": 3}
    config: dict[str, Any] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1}
    config |= {"responseTimeout": 60, "startupTimeout": 240, "handler": handler}
    (work / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return pack(
        PackRequest(
            model_name=model,
            version=version,
            handler=str(handler_file),
            serialized_file=work / "model.pt",
            config_file=work / "model-config.yaml",
            extra_files=str(work / "index_to_name.json"),
            export_path=work,
        )
    ).path


def _faulty(work: Path, line: str) -> Path:
    """Write the handler that we ship with one more line."""
    source = HANDLER.read_text(encoding="utf-8")
    assert _INFER in source
    count = "        self.calls = getattr(self, 'calls', 0) + 1\n"
    file = work / HANDLER.name
    file.write_text(source.replace(_INFER, f"{count}        {line}\n{_INFER}"), encoding="utf-8")
    shutil.copytree(HANDLER.parent / "marsmith_handler", work / "marsmith_handler", dirs_exist_ok=True)
    return file
