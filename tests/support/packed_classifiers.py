"""Archives of small classifiers, packed as a user does, with the handler that we ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from marsmith.build.pack import PackRequest, pack
from support.handler_fixtures import CLASSES, write_model
from support.projects import REPOSITORY


def pack_classifier(work: Path, model: str, version: str, module: torch.nn.Module) -> Path:
    """Pack a classifier of colours, with no prediction log in its settings; return the archive, in ``work``."""
    write_model(work, module)
    (work / "index_to_name.json").write_text(json.dumps(dict(enumerate(CLASSES))), encoding="utf-8")
    handler = {"warm_up_s": 0.001, "resize": 16, "crop": [16, 16], "top_k": 3}
    config: dict[str, Any] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1}
    config |= {"responseTimeout": 60, "startupTimeout": 240, "handler": handler}
    (work / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return pack(
        PackRequest(
            model_name=model,
            version=version,
            handler=str(REPOSITORY / "handlers" / "image_classifier_handler.py"),
            serialized_file=work / "model.pt",
            config_file=work / "model-config.yaml",
            extra_files=str(work / "index_to_name.json"),
            export_path=work,
        )
    ).path
