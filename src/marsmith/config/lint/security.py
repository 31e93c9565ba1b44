"""Rules for the access to a server, and for what clients can make it do."""

from __future__ import annotations

import re
from collections.abc import Iterator

from marsmith.config.edit import Edit
from marsmith.config.lint.rules import LintResult, violation
from marsmith.config.lint.server_file import ServerFile
from marsmith.config.server_keys import variable
from marsmith.config.tls import pair_problems

CLOSED = "(?!)"
# A wrong line about one of these has no effect. An automatic fix could open what is closed now.
OPENING_KEYS = frozenset(
    {
        "allowed_urls",
        "cors_allowed_origin",
        "disable_token_authorization",
        "enable_envvars_config",
        "enable_model_api",
        "grpc_inference_address",
        "grpc_management_address",
        "inference_address",
        "install_py_dep_per_model",
        "load_models",
        "management_address",
        "metrics_address",
        "use_env_allowed_urls",
    }
)
# URLs of other hosts that no safe pattern matches.
_FOREIGN = (
    "https://attacker.example/m.mar",
    "http://169.254.169.254/m.mar",
    "file:///etc/m.mar",
    "s3://attacker/m.mar",
)


def check_security(file: ServerFile) -> Iterator[LintResult]:
    """Yield the results about open access."""
    yield from _open_addresses(file)
    yield from _tokens(file)
    yield from _urls(file)
    yield from _overrides(file)
    yield from _transport(file)
    yield from _certificates(file)


def _open_addresses(file: ServerFile) -> Iterator[LintResult]:
    for listener in file.listeners.values():
        if listener.is_local:
            continue
        rule = "MS110" if "management" in listener.key else "MS111"
        message = f"{listener.key} is open to other machines ({listener.host}:{listener.port})"
        yield violation(
            rule, file.path, file.line(listener.key), message, "bind 127.0.0.1, and let a proxy face the network"
        )


def _tokens(file: ServerFile) -> Iterator[LintResult]:
    inference, management = (file.listeners.get(f"{api}_address") for api in ("inference", "management"))
    shared = bool(inference and management and inference.port and inference.port == management.port)
    key = "disable_token_authorization"
    if file.is_true(key):
        edit = None if shared else Edit("set", (key,), "false", file.line(key))
        yield violation("MS112", file.path, file.line(key), "tokens are off", f"write {key}=false", edit)
    elif shared:
        message = "management and inference share a port, so no management request is accepted"
        yield violation("MS113", file.path, file.line("management_address"), message, "give each a port of its own")
    if not file.is_true("enable_model_api"):
        message = "the model API is off: versions cannot change after the start of the server"
        yield violation(
            "MS120", file.path, file.line("enable_model_api"), message, "write enable_model_api=true, with tokens on"
        )
        yield from _workflows(file)
    elif file.is_true(key):
        message = "any client of the management API may register an archive, and thus run code"
        yield violation(
            "MS119", file.path, file.line("enable_model_api"), message, f"write {key}=false, or switch it off"
        )


def _workflows(file: ServerFile) -> Iterator[LintResult]:
    if "workflow_store" not in file.last or file.value("workflow_store") == file.value("model_store"):
        message = "the model API is off, but POST /workflows still runs the code of any .war in the model store"
        line = file.line("workflow_store" if "workflow_store" in file.last else "enable_model_api")
        yield violation(
            "MS133", file.path, line, message, "write workflow_store=FOLDER, with a folder that stays empty"
        )


def _urls(file: ServerFile) -> Iterator[LintResult]:
    key = "allowed_urls"
    admitted = [url for url in _FOREIGN if any(_admits(pattern, url) for pattern in file.value(key).split(","))]
    if not admitted:
        return
    loads_from_url = "://" in file.value("load_models")
    line = file.line(key)
    edit = None if loads_from_url else Edit("set", (key,), CLOSED, line if key in file.last else 0)
    message = f"allowed_urls permits {admitted[0]}" + ("" if key in file.last else ", because it is missing")
    yield violation(
        "MS114",
        file.path,
        line,
        message,
        f"write {key}={CLOSED}, which permits nothing, or the one host that you trust",
        edit,
    )


def _admits(pattern: str, url: str) -> bool:
    """Match like ArchiveUtils.validateURL: the whole URL, ignoring case."""
    try:
        return re.fullmatch(pattern, url, re.IGNORECASE) is not None
    except re.error:
        return False


def _overrides(file: ServerFile) -> Iterator[LintResult]:
    for key in ("enable_envvars_config", "use_env_allowed_urls"):
        if file.is_true(key):
            now = sorted(name for known in file.last if (name := variable(known)) and name in file.environment)
            message = f"{key} is on" + (f"; set right now: {', '.join(now)}" if now else "")
            edit = Edit("set", (key,), "false", file.line(key))
            yield violation("MS115", file.path, file.line(key), message, f"write {key}=false", edit)
    if file.is_true("install_py_dep_per_model"):
        message = "archives may install packages when they are loaded"
        fix = "install what archives need before, and write install_py_dep_per_model=false"
        yield violation("MS116", file.path, file.line("install_py_dep_per_model"), message, fix)
    if not file.is_true("limit_max_image_pixels"):
        message = "limit_max_image_pixels is off, so Pillow opens an image of any size"
        edit = Edit("set", ("limit_max_image_pixels",), "true", file.line("limit_max_image_pixels"))
        yield violation("MS132", file.path, file.line("limit_max_image_pixels"), message, "remove the line", edit)
    if file.value("cors_allowed_origin").strip() == "*":
        message = "cors_allowed_origin permits every web page"
        yield violation("MS131", file.path, file.line("cors_allowed_origin"), message, "name the permitted origins")


def _transport(file: ServerFile) -> Iterator[LintResult]:
    secure = [listener.key for listener in file.listeners.values() if listener.secure]
    if not secure:
        return
    # Metrics have no token. Another rule reports them if they are open to other machines.
    plain = [each.key for each in file.listeners.values() if not each.secure and each.key != "metrics_address"]
    if plain:
        message = f"{', '.join(secure)} speak TLS, but {', '.join(plain)} not"
        fix = "write https:// in every address, and enable_grpc_ssl=true"
        yield violation("MS134", file.path, file.line(plain[0]), message, fix)
    if "keystore" not in file.last and not _has_pair(file):
        message = f"{', '.join(secure)}: TLS with a certificate that TorchServe makes up at each start"
        yield violation("MS129", file.path, file.line(secure[0]), message, "name private_key_file and certificate_file")


def _has_pair(file: ServerFile) -> bool:
    return {"private_key_file", "certificate_file"} <= file.last.keys()


def _certificates(file: ServerFile) -> Iterator[LintResult]:
    if "keystore" in file.last and file.value("keystore_pass") == "changeit":
        line = file.line("keystore_pass" if "keystore_pass" in file.last else "keystore")
        yield violation(
            "MS130", file.path, line, "the keystore's password is changeit", "give the keystore another password"
        )
    if "keystore" in file.last and file.is_true("enable_grpc_ssl") and not _has_pair(file):
        message = "enable_grpc_ssl with a keystore and without private_key_file and certificate_file"
        fix = "name both files; openssl pkcs12 -in KEYSTORE -nodes prints what goes into them"
        yield violation("MS135", file.path, file.line("enable_grpc_ssl"), message, fix)
    hosts = sorted({each.client_host for each in file.listeners.values() if each.secure})
    key, certificate = (file.root / file.value(name) for name in ("private_key_file", "certificate_file"))
    # Another rule reports missing files.
    if hosts and _has_pair(file) and key.is_file() and certificate.is_file():
        for problem in pair_problems(key, certificate, hosts):
            yield violation("MS136", file.path, file.line("certificate_file"), problem.message, problem.tip)
