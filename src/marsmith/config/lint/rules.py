"""The rules of `marsmith lint`, and their results.

docs/reference/lint-and-config.md explains each rule and its fix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marsmith.config.edit import Edit
from marsmith.config.lint.findings import Finding, Severity


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: short name for SARIF viewers.
        severity: error if the server does not do what the file says, or is insecure; warning if it may cause harm; note
            for information.
        reason: reason for the rule in one line.
    """

    name: str
    severity: Severity
    reason: str


# MS1xx config.properties, MS2xx model-config.yaml and a spec's serving block, MS3xx model specs, MS4xx metrics.yaml,
# MS5xx archives, MS6xx names of models and versions, MS7xx config/marsmith.yaml.
RULES: dict[str, Rule] = {
    "MS101": Rule("unknown-server-key", "error", "TorchServe ignores an unknown key without a message"),
    "MS102": Rule("duplicate-server-key", "warning", "if a key occurs twice, only the last one counts"),
    "MS103": Rule("trailing-white-space", "error", "white space at the end of a value belongs to it"),
    "MS104": Rule("server-value-type", "error", "only true is true; a wrong number stops the start, or the first load"),
    "MS105": Rule("server-value-range", "error", "the value is out of the range that can work"),
    "MS106": Rule("bad-address", "error", "an address of any other form stops the start; IPv6 and a path have no form"),
    "MS107": Rule("ports-clash", "error", "two APIs cannot listen at one port"),
    "MS108": Rule("bad-properties", "error", "the file is not in the form of Java properties"),
    "MS110": Rule("management-open", "error", "any client of the management API can run code on this machine"),
    "MS111": Rule("api-open", "warning", "the API is open to every machine that reaches this one"),
    "MS112": Rule("tokens-off", "warning", "without tokens every user of this machine may use every API"),
    "MS113": Rule(
        "tokens-on-shared-port",
        "error",
        "at a shared port a management request needs two tokens at once, so each is refused",
    ),
    "MS114": Rule("urls-open", "error", "an archive from any URL is code from anywhere (CVE-2023-43654)"),
    "MS115": Rule("variables-override", "warning", "TS_* variables override the file without notice"),
    "MS116": Rule("pip-at-load", "warning", "an archive may then run pip, which can hang the load and change packages"),
    "MS117": Rule("async-logging", "note", "it is read after the loggers have been made, so it has no effect"),
    "MS118": Rule("no-metrics", "warning", "the metrics API stays empty unless metrics_mode is prometheus"),
    "MS119": Rule("model-api-open", "error", "with the model API on and tokens off, any client may register code"),
    "MS120": Rule("model-api-off", "note", "registering and unregistering answer 405"),
    "MS121": Rule("small-response", "warning", "a reply over max_response_size kills the worker that gives it"),
    "MS123": Rule(
        "workers-unset", "warning", "without it there is a worker a core, each with as many threads as cores"
    ),
    "MS124": Rule("snapshot-wins", "warning", "with a model_snapshot load_models is not read"),
    "MS125": Rule("missing-path", "error", "the file or folder does not exist"),
    "MS126": Rule("unset-variable", "error", "a variable between $$ that is not set stops the start"),
    "MS127": Rule("model-not-loaded", "error", "an archive that cannot be loaded is skipped with a line in a log"),
    "MS128": Rule("bad-models-json", "error", "models must be JSON: name, version, then TorchServe's keys"),
    "MS129": Rule("made-up-certificate", "warning", "https without a certificate uses one that no client can trust"),
    "MS130": Rule("keystore-password", "warning", "the password is the well-known default"),
    "MS131": Rule("cors-open", "warning", "any web page may then call this server from its visitors' browsers"),
    "MS132": Rule("image-bombs", "warning", "a small image may then decompress to all of the memory"),
    "MS133": Rule("workflows-open", "warning", "enable_model_api does not close the workflow API, which runs code too"),
    "MS134": Rule("mixed-transport", "warning", "if one API has no TLS, its token is sent in the clear"),
    "MS135": Rule("keystore-for-grpc", "error", "gRPC does not read a keystore, and the server does not start"),
    "MS136": Rule(
        "bad-certificate", "error", "with such a key or certificate the server does not start, or no client trusts it"
    ),
    "MS201": Rule("unknown-model-key", "error", "TorchServe ignores an unknown key without a message"),
    "MS202": Rule(
        "key-for-handler", "note", "TorchServe does not read the key; it has an effect only if the handler does"
    ),
    "MS203": Rule("model-value-type", "error", "a value of the wrong type is ignored, with a line in a log"),
    "MS204": Rule("model-value-range", "error", "a value out of range is ignored or replaced"),
    "MS205": Rule(
        "bad-model-config", "error", "a model config that is empty or not a mapping of texts ends the server"
    ),
    "MS206": Rule("timeouts-unset", "warning", "any model config sets both timeouts to 120 s over everything else"),
    "MS207": Rule(
        "hidden-delay", "error", "a maxBatchDelay that is 0 or missing means 100 ms, which every single request waits"
    ),
    "MS208": Rule("idle-delay", "note", "with a batchSize of 1 maxBatchDelay has no effect"),
    "MS209": Rule("workers-ignored", "error", "workers count only if maxWorkers is at least minWorkers"),
    "MS210": Rule("model-workers-unset", "warning", "without both keys the server config decides: a worker a core"),
    "MS211": Rule("too-many-threads", "warning", "workers x threads above the cores make every worker slower"),
    "MS212": Rule("long-retries", "warning", "for 300 s a dead worker counts as healthy, and no worker answers"),
    "MS213": Rule("device-ids", "error", "one invalid id, and the whole list is ignored"),
    "MS214": Rule("parallel-ignored", "warning", "parallelType and parallelLevel count only together"),
    "MS215": Rule("delay-over-timeout", "error", "a request waits longer for its batch than it may take"),
    "MS216": Rule("costly-delay", "warning", "at most one unfilled batch leaves per delay, whatever the worker count"),
    "MS217": Rule(
        "sequence-ignored", "warning", "sequence keys count only with sequenceBatching and sequenceMaxIdleMSec"
    ),
    "MS218": Rule("duplicate-model-key", "warning", "if a key occurs twice, only the last one counts"),
    "MS301": Rule("bad-spec", "error", "the model spec does not follow its format"),
    "MS302": Rule("delay-over-p99", "warning", "the delay takes much of the time that the service level allows"),
    "MS303": Rule("short-queue", "warning", "the queue is too short for the service level: requests are refused"),
    "MS304": Rule("long-queue", "warning", "a request at the end of the queue waits longer than the response timeout"),
    "MS305": Rule("spec-file-name", "error", "a spec is found by its file's name"),
    "MS306": Rule("spec-missing-file", "error", "the spec names a file that does not exist, or a folder"),
    "MS307": Rule("no-examples", "warning", "without examples the version's answers cannot be checked"),
    "MS308": Rule("timeout-under-p99", "error", "the response timeout ends requests that the service level allows"),
    "MS309": Rule("unquoted-version", "error", "without quotes YAML reads 1.10 as the number 1.1"),
    "MS401": Rule("bad-metrics-file", "error", "one wrong key and the whole file is refused: no metrics at all"),
    "MS402": Rule("bad-metric", "error", "a metric needs a name, a unit and a list of dimensions"),
    "MS403": Rule(
        "undeclared-metric", "warning", "a metric that a handler writes and the file does not declare is dropped"
    ),
    "MS404": Rule(
        "metric-type-differs", "error", "the handler writes another type than the file declares: it is dropped"
    ),
    "MS405": Rule("duplicate-metric", "error", "with two metrics of one name the frontend does not start"),
    "MS406": Rule("frontend-metric", "error", "with other dimensions each value fails with an exception in the log"),
    "MS407": Rule("metric-name", "error", "Prometheus does not accept the name, and the frontend does not start"),
    "MS501": Rule("bad-archive", "error", "TorchServe cannot load the archive"),
    "MS502": Rule("no-model-config", "warning", "without a model config every default of TorchServe's applies"),
    "MS503": Rule("requirements-ignored", "warning", "requirements are ignored unless install_py_dep_per_model is on"),
    "MS504": Rule("twin-archives", "error", "if two archives have one version, one is dropped"),
    "MS505": Rule("few-labels", "error", "the stock handler returns the best five and fails with fewer classes"),
    "MS506": Rule(
        "stock-handler", "note", "the stock handler rotates no photo, converts no grey one, and fails a batch whole"
    ),
    "MS601": Rule("token-in-path", "error", "any management URL with /token in it goes to the token API"),
    "MS602": Rule("version-all", "error", "describing the version `all` describes every version"),
    "MS603": Rule("bad-model-name", "error", "TorchServe does not take the name, and no URL can carry it"),
    "MS604": Rule("bad-version", "error", "no request can name the version later, so it cannot be unregistered"),
    "MS507": Rule("odd-manifest", "warning", "TorchServe reads the manifest although it is invalid"),
    "MS701": Rule("bad-settings", "error", "config/marsmith.yaml does not follow its format, and nothing is served"),
    "MS702": Rule("bad-trusted-key", "error", "a trusted key that cannot be read proves no signature"),
}


@dataclass(frozen=True)
class LintResult:
    """Result of a rule, with an edit if it can be fixed automatically."""

    finding: Finding
    edit: Edit | None = None


def violation(rule: str, file: Path, line: int, message: str, fix: str, edit: Edit | None = None) -> LintResult:
    """Create a result with the severity of its rule."""
    return LintResult(Finding(rule, file, line, message, fix, RULES[rule].severity), edit)
