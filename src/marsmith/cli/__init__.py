"""The ``marsmith`` command: one module per verb, listed here, imported only when it is called.

The command line is the only layer that prints, parses arguments and exits. Results go to stdout, progress and errors to
stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 128 + n ended by signal n (130 for Ctrl-C, 143 for SIGTERM).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from marsmith import __version__
from marsmith.child_processes import StopRequestedError, stop_on_signals
from marsmith.cli.output import note
from marsmith.errors import MarsmithError, WorkerDiedError
from marsmith.file_errors import access_error
from marsmith.names import did_you_mean
from marsmith.quick_exit import run_and_exit

# In the order of the workflow. A verb is in the module of the same name, with '-' as '_'.
VERBS = {
    "new": "make a new project in an empty folder",
    "export": "export a model's weights to a serialized file",
    "archive": "build the model archive of a spec, in the model store",
    "pack": "build a model archive from loose files, with torch-model-archiver's flags",
    "repack": "convert an archive of the stock tool into one of marsmith's",
    "optimize": "convert an archive of the stock tool into the fastest form that still gives the same answers",
    "inspect": "show the content of an archive",
    "verify": "verify that an archive is complete, safe and answers as it did when it was built",
    "sign": "sign an archive",
    "run": "answer requests with an archive's handler, without a server",
    "batch": "answer many inputs with an archive, without a server, into Parquet files",
    "check": "find the faults of a handler before it runs in a server",
    "watch": "edit a handler and see its reply again, without reloading the weights",
    "lint": "find the traps of TorchServe in config files, specs and archives",
    "config": "show the effective configuration, and where it comes from",
    "doctor": "check whether this machine can run a server well",
    "serve": "start TorchServe and wait until every model answers",
    "host": "serve archives without TorchServe and without Java",
    "status": "show what the server runs",
    "stop": "stop the server",
    "predict": "send inputs to a model",
    "models": "list the registered models and versions",
    "register": "register an archive with the running server",
    "scale": "set the number of workers of a version",
    "set-default": "set the default version of a model",
    "unregister": "unregister a version, after its requests are answered",
    "deploy": "bring a new version into service with no request lost, or restore the state before",
    "rollout": "show the rollouts of canaries, and pause, resume, promote or abort them",
    "log": "show the logged predictions of a model, or compare those of two versions",
    "drift": "show how far the requests of a version differ from its reference and from earlier ones",
    "label": "join labels that came later with what each version has predicted",
    "rollback": "go back to the version that was the default before",
    "monitor": "write alert rules and dashboards for Prometheus and Grafana, or run Prometheus here",
    "kubernetes": "write manifests for Kubernetes or KServe",
    "bench": "put load on a model and measure latency, throughput and errors",
    "tune": "find the workers, threads and batching that hold a latency limit",
    "token": "print a token for curl",
    "certificate": "make a self-signed certificate for TLS in development",
}

EPILOG = (
    "`marsmith VERB --help` explains a verb. The project is the folder with config/models, searched upwards from here."
)


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    usage = "usage: marsmith [--version] VERB [...]\n\nFrom weights to a version that answers requests."
    return f"{usage}\n\n{lines}\n\n{EPILOG}"


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb's arguments; the generated reference and the tests of the pages read it too."""
    module = import_module(f"marsmith.cli.{verb.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"marsmith {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    parser.set_defaults(run=module.run)
    return parser


def _report(error: MarsmithError) -> None:
    if isinstance(error, WorkerDiedError) and error.traceback:
        note(error.traceback.rstrip())
    note(f"marsmith: error: {error.message}")
    if error.tip:
        note(f"TIP: {error.tip}")


def _stopped(number: int) -> int:
    """Return the exit code of a command that a signal has ended, as shells report it."""
    words = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    # The terminal, or the reader of our output, may be gone.
    with suppress(OSError):
        print(f"marsmith: {words}", file=sys.stderr)
    return 128 + number


def run_command() -> NoReturn:
    """Run the ``marsmith`` command line, and end the process with its exit code."""
    run_and_exit(_main_until_stopped)


def _main_until_stopped() -> int:
    with stop_on_signals():
        return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview())
        return 0
    if arguments[0] in {"-V", "--version"}:
        print(f"marsmith {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"marsmith: error: no verb {verb!r}{did_you_mean(verb, VERBS)}", file=sys.stderr)
        print("TIP: marsmith --help", file=sys.stderr)
        return 2
    try:
        parsed = verb_parser(verb).parse_args(arguments[1:])
        return int(parsed.run(parsed) or 0)
    except MarsmithError as error:
        _report(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`marsmith models | head`), which is not a failure.
        sys.stderr.close()
        return 0
    except OSError as error:
        refused = access_error(error)
        if refused is None:
            raise
        _report(refused)
        return refused.exit_code
    except KeyboardInterrupt as error:
        return _stopped(error.number if isinstance(error, StopRequestedError) else signal.SIGINT)
