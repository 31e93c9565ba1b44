"""``marsmith_handler``: the package beside our handlers that rides in archives, and the flat names that it once had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from marsmith.runtime.import_statements import ImportStatement

PACKAGE = "marsmith_handler"
# Below the handler's folder: what runs the serialized file in a worker.
ENGINES = Path(PACKAGE, "engines")
# What the package itself offers.
_FACE = frozenset({"BaseHandler", "ItemError", "Reply", "Request"})
# Each module, by the name that it had when it lay beside the handler.
_FORMER_MODULES = {
    "answers": "answers",
    "aot_inductor_engine": "engines.aot_inductor_engine",
    "archive_additions": "archive_additions",
    "archive_proof": "proof",
    "audio_decoding": "audio.decoding",
    "base_handler": "base",
    "batch_slot": "batch",
    "bounded_json": "bounded_json",
    "character_table": "text.character_table",
    "devices": "devices",
    "engine_errors": "engines.errors",
    "engines": "engines",
    "english_words": "text.english_words",
    "error_text": "error_text",
    "exact_numbers": "exact_numbers",
    "example_replay": "example_replay",
    "failures": "failures",
    "file_pieces": "file_pieces",
    "freed_memory": "freed_memory",
    "gathered_lines": "gathered_lines",
    "graph_checks": "graph_checks",
    "handler_settings": "settings",
    "image_decoding": "image.decoding",
    "image_formats": "image.formats",
    "image_handler": "image.handler",
    "isolation": "isolation",
    "item_errors": "errors",
    "kserve_v2": "kserve_v2",
    "labels": "labels",
    "model_request": "request",
    "onnxruntime_engine": "engines.onnxruntime_engine",
    "openvino_engine": "engines.openvino_engine",
    "prediction_log": "prediction_log",
    "processor": "processor",
    "replies": "replies",
    "request_envelope": "envelope",
    "speech_spans": "audio.speech_spans",
    "stage_metrics": "metrics",
    "tensor_formats": "tensor.formats",
    "tensor_signature": "tensor.signature",
    "text_requests": "text.requests",
    "torch_engine": "engines.torch_engine",
    "torchvision_operators": "image.torchvision_operators",
    "vocabulary": "text.vocabulary",
    "warm_up": "warm_up",
    "word_pieces": "text.word_pieces",
    "worker_messages": "worker_messages",
}
# The errors of an item, by the names that they had.
_FORMER_NAMES = {
    "BrokenAnswer": "InternalError",
    "DeadlinePassed": "DeadlineExceeded",
    "MalformedRequest": "BadRequest",
    "OutOfMemory": "InsufficientStorage",
    "TooLarge": "ContentTooLarge",
    "UnknownType": "UnsupportedMediaType",
    "Unusable": "UnprocessableContent",
}


def new_import(statement: ImportStatement) -> str | None:
    """Return what to write in place of an import by a flat name; None for any other import."""
    if statement.level or statement.module not in _FORMER_MODULES:
        return None
    module = _FORMER_MODULES[statement.module]
    names = [_FORMER_NAMES.get(name, name) for name in statement.names]
    if not names:
        home, _, leaf = f"{PACKAGE}.{module}".rpartition(".")
        return f"from {home} import {leaf}"
    if _FACE.issuperset(names):
        return f"from {PACKAGE} import {', '.join(names)}"
    return f"from {PACKAGE}.{module} import {', '.join(names)}"


def library_files(files: Iterable[Path], folder: Path) -> list[Path]:
    """Return those of the files that belong to the package beside a handler.

    Args:
        files: what the handler reaches.
        folder: the handler's own.
    """
    return [file for file in files if file.is_relative_to(folder / PACKAGE)]
