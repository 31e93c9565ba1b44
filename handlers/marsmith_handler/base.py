"""Base class of the handlers: it processes batches; a concrete handler processes single items.

A concrete handler overrides ``decode`` (one request to one item), ``infer`` (a list of items to one result each) and
``encode`` (one result to one reply), and ``load`` and ``warm_up_item`` if necessary. The base class does the rest: a
bad item gets its own error, the archive is proved at load, and stages are timed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith_handler import devices, engines, proof, watched
from marsmith_handler import metrics as names
from marsmith_handler.batch import Slot
from marsmith_handler.envelope import seal
from marsmith_handler.errors import InternalError, ItemError
from marsmith_handler.example_replay import prove_answers, read_examples
from marsmith_handler.failures import is_fatal, item_error, leave, log_exception, printable
from marsmith_handler.freed_memory import keep_freed_memory
from marsmith_handler.gathered_lines import gather_metric_lines
from marsmith_handler.isolation import infer_isolated
from marsmith_handler.last_lines import keep_last_lines
from marsmith_handler.metrics import StageClock, StageMetrics
from marsmith_handler.prediction_log import PredictionLog, Served, as_array
from marsmith_handler.replies import Reply, encode_reply, error_reply, limited
from marsmith_handler.request import Request
from marsmith_handler.settings import HandlerSettings, read_settings
from marsmith_handler.warm_up import warm_up
from marsmith_handler.worker_messages import bound_fields, take_bytes

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class BaseHandler:
    """Answers batches; see the module.

    Attributes:
        folder: the unpacked archive.
        manifest: the archive's manifest, block ``model``.
        config: the block ``handler`` of model-config.yaml.
        settings: those parts of it that every handler has.
        batch_size: largest number of items that ``infer`` gets at once.
        device: device of the model.
        engine: engine of the serialized file; None until ``load_serialized_file`` is called.
        model: set by ``load``; by default ``engine.run``: the TorchScript module on ``device``, or the function of
            another engine for one batch.
    """

    folder: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    device: torch.device
    engine: engines.Engine | None
    model: Any

    # What a concrete handler writes ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Load what the handler needs from ``self.folder``; called once, before anything else of it."""
        self.model = self.load_serialized_file()

    def decode(self, request: Request) -> Any:
        """Turn one request into one item, such as a tensor or a numpy array. May run in several threads at once.

        The sender gets an ItemError that is raised here. A ValueError, LookupError or TypeError becomes a 422.
        """
        raise NotImplementedError

    def check_together(self, requests: Sequence[Request]) -> None:
        """Judge the several requests of one envelope before any is decoded; called only if there are several.

        The sender gets an ItemError that is raised here. A handler that bounds one request, for example its pixels or
        characters, bounds all of them together here.
        """

    def infer(self, items: list[Any]) -> Sequence[Any]:
        """Turn items into results, one each, in their order: a list, a numpy array or a tensor with as many rows.

        A tensor must be in the machine's memory, not the GPU's. By default items are tensors or numpy arrays of one
        shape. They are stacked into one tensor, and the model gives a tensor or a numpy array with as many rows.
        """
        results = self.model(devices.stack_on(items, self.device))
        rows: Sequence[Any] = results.cpu() if hasattr(results, "cpu") else results
        return rows

    def encode(self, result: Any, request: Request) -> Any:
        """Turn one result into one reply: a JSON value, text, bytes, or a ``Reply`` with a content type of its own."""
        raise NotImplementedError

    def warm_up_item(self) -> Any | None:
        """Return an item for warming up, as ``decode`` would return it; None: the archive's first example is used."""
        return None

    def redact(self, record: dict[str, Any]) -> Mapping[str, Any]:
        """Return what the prediction log keeps of a request, such as a reply without a name; runs in the log's thread.

        A line whose record cannot be redacted is not written.
        """
        return record

    def watch(self, request: Request, item: Any, reply: Any) -> Mapping[str, float | str]:  # noqa: ARG002
        """Describe an answered item by numbers and classes, by which drift is found; runs in the log's thread.

        Args:
            request: the request.
            item: what ``decode`` made of it.
            reply: what ``encode`` made of its result.

        Returns:
            By default the class, confidence, margin and entropy of a classifier's reply, and mean, standard deviation
            and share of missing numbers of an item that is a tensor or an array.
        """
        array = as_array(item)
        return {**({} if array is None else watched.of_numbers(array)), **watched.of_classes(reply)}

    # What TorchServe calls ------------------------------------------------------------------------------------------

    def initialize(self, context: Any) -> None:
        """Load the archive and prove it.

        Raises:
            RuntimeError: it differs from what was validated, or it cannot be loaded. TorchServe's worker treats only
                this exception as a failed load.
        """
        keep_last_lines()
        try:
            self._configure(context)
            self._prove_archive()
            self._place(context.system_properties.get("gpu_id"), context.model_yaml_config or {})
            self.load()
            self._warm_up()
            self.replayed = prove_answers(self.handle, self.folder, self.batch_size, self.config, self._computed)
            # Only now: examples are neither measured nor logged as predictions.
            self._observe(context)
        except (OSError, ValueError, TypeError, LookupError, ImportError, ItemError) as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        logger.info("%s %s is ready: %s", self.model_name, self.model_version, self.describe())

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one reply for each element of ``data``, whatever its content."""
        slots = [
            Slot(index, str(context.get_request_id(index)), fields, context.get_all_request_header(index))
            for index, fields in enumerate(data)
        ]
        clock = StageClock()
        with devices.inference_mode():
            with clock.stage(names.DECODE_SECONDS):
                self._decode_all(slots)
            with clock.stage(names.INFER_SECONDS):
                self._infer_all(slots)
            with clock.stage(names.ENCODE_SECONDS):
                replies = [self._reply(slot) for slot in slots]
        for slot, reply in zip(slots, replies, strict=True):
            context.set_response_content_type(slot.index, reply.content_type)
            context.set_response_status(reply.status, reply.phrase, slot.index)
        try:
            self._record(slots, replies, clock)
        except Exception as error:
            log_exception("metrics or prediction log failed", error)
        return [reply.body for reply in replies]

    # What a concrete handler may use --------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Name in the manifest."""
        return str(self.manifest.get("modelName", ""))

    @property
    def model_version(self) -> str:
        """Version in the manifest."""
        return str(self.manifest.get("modelVersion", ""))

    def load_serialized_file(self) -> Any:
        """Load the archive's serialized file with its engine, on the device; by default TorchScript, with torch.

        Returns:
            A function of one batch; with the engine torch, the TorchScript module, whatever it takes.

        Raises:
            RuntimeError: see ``engines.load_engine``.
        """
        file = self.manifest.get("serializedFile")
        if not file:
            raise RuntimeError("the manifest names no serializedFile")
        self.engine = engines.load_engine(self.folder, str(file), self.config, self.device, self.placement.threads)
        if self.engine.name in engines.OWN_THREADS:
            # torch's threads only resize single images then, and would spin on the cores of the engine's threads.
            devices.use_one_thread()
        return self.engine.run

    def describe(self) -> dict[str, Any]:
        """Return facts about the loaded version, for ``GET /models/{model}?customized=true``."""
        return {
            "device": str(self.device),
            **self._computed(),
            "threads": self.placement.threads,
            "decode_threads": self.placement.decode_threads,
            "batch_size": self.batch_size,
            "digests_verified": self.digests_verified,
            "examples_replayed": self.replayed.examples,
            "examples_unproved": len(self.replayed.unproved),
            # It shows a client which of several workers has answered, and so has finished its earlier requests.
            "pid": os.getpid(),
        }

    # Loading --------------------------------------------------------------------------------------------------------

    def _configure(self, context: Any) -> None:
        take_bytes()
        properties = context.system_properties
        self.folder = Path(properties["model_dir"])
        self.manifest = (context.manifest or {}).get("model", {})
        self.config = (context.model_yaml_config or {}).get("handler") or {}
        self.settings = read_settings(self.config)
        bound_fields(self.settings.max_items)
        self.engine_settings = engines.read_engine_settings(self.config)
        self.engine = None
        self.batch_size = max(1, int(properties.get("batch_size") or 1))
        self._metrics = StageMetrics({})
        self._prediction_log: PredictionLog | None = None

    def _prove_archive(self) -> None:
        read = {str(self.config[key]) for key in ("labels", "vocabulary", "engine_file") if key in self.config}
        may_have_more = bool(self.manifest.get("requirementsFile"))
        self.digests_verified = proof.prove_digests(self.folder, read=read, may_have_more=may_have_more)
        proof.prove_environment(self.folder, self.settings.environment, self.engine_settings.may_lack)

    def _place(self, gpu_id: Any, model_config: Mapping[str, Any]) -> None:
        wanted = (self.settings.threads, self.settings.decode_threads)
        self.placement = devices.choose_placement(gpu_id, model_config, *wanted)
        self.device = self.placement.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self._pool = devices.set_threads(self.placement)

    def _warm_up(self) -> None:
        item = self.warm_up_item()
        if item is None:
            item = self._first_example_item()
        if item is not None:
            with devices.inference_mode():
                warm_up(self.infer, item, self.batch_size, self.settings.warm_up_s)

    def _first_example_item(self) -> Any | None:
        for example in read_examples(self.folder):
            slot = Slot(0, "warm-up", example.row(), example.headers())
            self._decode_all([slot])
            if slot.requests:
                return slot.items[0]
        return None

    def _computed(self) -> Mapping[str, Any]:
        return self.engine.describe() if self.engine else {}

    def _observe(self, context: Any) -> None:
        self._metrics = StageMetrics.of(context.metrics, self.model_name, self.model_version)
        gather_metric_lines()
        self._prediction_log = PredictionLog.of(self.settings.prediction_log, self.model_name, self.redact, self.watch)

    # Answering ------------------------------------------------------------------------------------------------------

    def _decode_all(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self._attempt(slot, partial(self._open, slot))
        work = [(slot, position, request) for slot in slots for position, request in enumerate(slot.requests)]
        run = self._pool.map if self._pool and len(work) > 1 else map
        decoded = list(run(self._decode_one, [request for *_, request in work]))
        for (slot, position, _), item in zip(work, decoded, strict=True):
            if isinstance(item, ItemError):
                slot.fail(item, position)
            slot.items.append(item)

    def _open(self, slot: Slot, settings: HandlerSettings) -> None:
        slot.open(settings)
        if len(slot.requests) > 1:
            self.check_together(slot.requests)

    def _attempt(self, slot: Slot, step: Callable[[HandlerSettings], None]) -> None:
        try:
            step(self.settings)
        except Exception as error:
            slot.fail(self._explain(error, "decode"))

    def _decode_one(self, request: Request) -> Any:
        try:
            with devices.inference_mode():
                return self.decode(request)
        except Exception as error:
            return self._explain(error, "decode")

    def _infer_all(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self._attempt(slot, slot.check_deadline)
        work = [(slot, position) for slot in slots for position, _ in enumerate(slot.requests)]
        for start in range(0, len(work), self.batch_size):
            chunk = work[start : start + self.batch_size]
            items = [slot.items[position] for slot, position in chunk]
            results = infer_isolated(self.infer, items, lambda error, count: self._explain(error, "infer", count))
            for (slot, position), result in zip(chunk, results, strict=True):
                if isinstance(result, ItemError):
                    slot.fail(result, position)
                slot.results.append(result)

    def _reply(self, slot: Slot) -> Reply:
        try:
            if slot.asks("describe"):
                return encode_reply(self.describe())
            if slot.failure is None and slot.envelope is not None:
                slot.replies = [self.encode(*pair) for pair in zip(slot.results, slot.envelope.requests, strict=True)]
                identity = {"model": self.model_name, "version": self.model_version, "request_id": slot.request_id}
                return limited(
                    encode_reply(seal(slot.envelope, slot.replies, **identity)), self.settings.max_response_bytes
                )
        except Exception as error:
            slot.fail(self._explain(error, "encode"))
        failure = slot.failure or InternalError("the request got no answer")
        facts = (printable(slot.request_id), failure.code, printable(failure.type), printable(failure.message))
        logger.info("request %s gets %d %s: %s", *facts)
        return error_reply(failure, slot.request_id, slot.v2_identity(self.model_name, self.model_version))

    def _explain(self, error: Exception, stage: str, count: int = 1) -> ItemError:
        """Return the item's error for an exception; end the process if the exception has left the device unusable."""
        if is_fatal(error, self.device):
            leave(error)
        failure = item_error(error, stage)
        if count > 1:
            logger.warning("a batch of %d failed and is halved: %s", count, printable(failure.message))
        elif failure.code >= 500 and not isinstance(error, ItemError):
            log_exception(f"{stage} failed", error)
        return failure

    def _record(self, slots: Sequence[Slot], replies: Sequence[Reply], clock: StageClock) -> None:
        counts = {names.BATCH_ITEMS: float(sum(len(slot.requests) for slot in slots))}
        # The frontend parses a line for each, so zeros are not sent.
        for metric, lowest in ((names.ITEM_ERRORS, 400), (names.ITEM_FAILURES, 500)):
            if found := sum(reply.status >= lowest for reply in replies):
                counts[metric] = float(found)
        self._metrics.emit({**clock.seconds, **counts})
        if self._prediction_log is None:
            return
        handler_ms = sum(clock.seconds.values()) * 1000
        served = Served(self.model_name, self.model_version, handler_ms, len(slots))
        for slot, reply in zip(slots, replies, strict=True):
            self._prediction_log.add(slot, reply, served)
