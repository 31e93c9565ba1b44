"""The page with all figures, rendered from the results alone: tables, targets beside what was measured, plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import machine_line
from marsmith.plots import new_figure, tidy
from prose import fold
from targets import busiest, most_of_limit, targets

Result = Mapping[str, Any]
HEAD = """# Benchmarks

Written by `make bench` (`benchmarks/run_all.py`). Every figure is from the run whose machine is named. The candidates
were measured side by side, in turns. Compare only ratios of one run, and not figures of two machines or of two runs.
`benchmarks/README.md` says what each file measures.

Machine: {machine}.
"""

AT_MOST = """\
*At most* is the upper limit of the same run. At 32 clients it assumes workers as fast as decode and model in process,
with the measured cost of the frontend and the driver. For the load generator it assumes Poisson arrivals in the tuner's
queue, with the cost of decode and model only. Against a peer it is decode and model in process, without a server. A
measured value may be above it by the scatter between two turns.
"""
# Of results that do not say how their rates were counted.
TOO_LOW = """\
Measured before answers to requests of the warm-up counted: the rates of closed loops are too low by c / (n + c), with
c clients and n requests that counted. That is 5% for 200 requests a second at 32 clients in 3 s, more for slower ones.
"""

PARTS = ("workers", "frontend", "driver")
# Another machine's figures would not belong on this page.
GPU = """## On a GPU

`python benchmarks/gpu.py` measures the same on a CUDA machine, without a network. It was not run, because no such
machine was available.
"""


def render_page(results: Mapping[str, Result], plots: Path) -> str:
    """Render docs/explanation/benchmarks.md from the results by name; plots go into the folder ``plots``.

    Raises:
        ValueError: the results are of different machines.
    """
    if not results:
        return HEAD.format(machine="nothing has been measured yet")
    machines = {name: result["machine"] for name, result in results.items()}
    kinds = {hardware(each) for each in machines.values()}
    if len(kinds) > 1:
        raise ValueError(f"results of different machines: {sorted(kinds)}; measure all again on one")
    newest = max(machines.values(), key=lambda each: len(each["versions"]))
    parts = [HEAD.format(machine=machine_line(newest)), _targets(results)]
    missing = [name for name in SECTIONS if name not in results]
    if missing:
        parts.append(f"Not measured on this machine yet: {', '.join(missing)}.\n")
    parts += [render(results[name], plots) for name, render in SECTIONS.items() if name in results]
    parts.append(GPU)
    return fold("\n".join(parts))


def hardware(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is equal of machines whose figures may stand on one page; a cloud names several processors alike."""
    return (str(machine["cpu"]), f"{machine['cores']} cores", *machine["cpuFlags"])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---" for _ in columns) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _targets(results: Mapping[str, Result]) -> str:
    columns = ("what", "target", "measured", "", "at most")
    return f"## Targets\n\n{markdown(columns, [target.row() for target in targets(results)])}\n{AT_MOST}"


def _serving(result: Result, _plots: Path) -> str:
    parts = ["## Serving: against the limit, and against stock TorchServe\n"]
    units = "answers per second ± half the range over the rounds, p99 in ms in brackets; JPEG of 640x480 over HTTP"
    parts.append(f"`{result['command']}`; {units}.\n")
    for made in result["results"]:
        columns = (made["model"], "1 client", "8 clients", "32 clients", "failed")
        rows = [
            (name, *(_rate(row[c]) for c in ("1", "8", "32")), _failed(row)) for name, row in made["servers"].items()
        ]
        rows += [(f"limit in process, {name}", "", "", f"{rate:.1f}", "") for name, rate in made["limit"].items()]
        grpc = made["grpc"]
        parts.append(markdown(columns, rows))
        parts.append(f"8 clients: HTTP {grpc['http']:.1f}, gRPC {grpc['grpc']:.1f} answers/s.\n")
        parts.append(_costs(made, result["machine"]["cores"]))
        ratios = made["ratios"]
        one = f"against stock with one worker: {ratios['stock, 1 worker']:.2f}"
        parts.append(f"{one}, float32 {ratios['stock float32, 1 worker']:.2f} times at 32 clients.\n")
    return "\n".join(parts)


def _rate(cell: Mapping[str, Any]) -> str:
    rounds = cell["rpsOfRounds"]
    return f"{cell['rps']:.1f} ±{(max(rounds) - min(rounds)) / 2:.1f} ({cell['p99Ms']:.0f})"


def _costs(made: Mapping[str, Any], cores: int) -> str:
    """Return what a request takes of the processor where, and what bound follows from it."""
    limit, busy = max(made["limit"].values()), busiest(made)
    alone = {"workers": cores * 1000 / limit}
    table = _spent({"decode + model in process": (limit, alone), "32 clients": (busy["rps"], busy["spentMs"])})
    return (
        f"{table}\nFrontend and driver run on the same cores: with workers as quick as the process alone, 32 clients"
        f" would get {most_of_limit(made, cores):.2f} of the limit.\n"
    )


def _spent(rows: Mapping[str, tuple[float, Mapping[str, float]]]) -> str:
    """Return a table of rates and of processor time a request."""
    cells = [
        (name, f"{rate:.0f}", *(f"{parts[part]:.2f}" if part in parts else "" for part in PARTS))
        for name, (rate, parts) in rows.items()
    ]
    return markdown(("processor time a request, ms", "requests/s", *PARTS), cells)


def _judged(result: Result, _plots: Path) -> str:
    parts = [f"## What MLPerf's load generator says\n\n`{result['command']}`; JPEG of 640x480 over HTTP.\n"]
    cores = result["machine"]["cores"]
    for made in result["results"]:
        searched = {each["setup"]: each for each in made["searched"]}
        same = f"p99 at {made['qualifyingRate']:.0f}/s, ms"
        rows = [
            (
                setup,
                f"{rate:.1f}",
                f"{made['qualifyingP99Ms'][setup]:.0f}" if setup in made["qualifyingP99Ms"] else "",
                f"{searched[setup]['server']:.1f}" if setup in searched else "",
            )
            for setup, rate in made["offlineOf"].items()
        ]
        parts.append(markdown((made["model"], "offline, samples/s", same, "most at p99 <= 50 ms, /s"), rows))
        best = max(made["searched"], key=lambda each: float(each["server"]))
        full = cores * 1000 / sum(best["spentMs"].values())
        alone = {"workers": cores * 1000 / made["inProcess"]}
        parts.append(
            _spent(
                {
                    "decode + model in process": (made["inProcess"], alone),
                    f"Poisson, {best['setup']}": (best["server"], best["spentMs"]),
                }
            )
        )
        parts.append(
            f"Server / offline: {made['ratio']:.2f}. Under Poisson arrivals batches stay small, and cost more a"
            f" request: the cores are fully used at {full:.0f} requests/s, {full / made['offline']:.2f} of offline, and"
            f" a 99th percentile needs room below that. By the tuner's queue {made['bound']:.0f}/s would hold if a"
            " request cost decode and model alone.\n"
        )
    return "\n".join(parts)


def _failed(row: Mapping[str, Any]) -> int:
    return sum(int(cell["failed"]) for cell in row.values())


def _service_level(result: Result, plots: Path) -> str:
    names = _draw_level(result, plots)
    caveat = [] if "rates" in result else [TOO_LOW]
    rows = [
        (f"{p['rps']:g}", p["latencyMs"]["p50"], p["latencyMs"]["p99"], sum(p["errors"].values()))
        for p in result["load"]
    ]
    batches = [
        (p["clients"], p["requestsPerSecond"], p["latencyMs"]["p50"], p["latencyMs"]["p99"]) for p in result["clients"]
    ]
    largest = f"{result['largestRate']:.0f} requests per second"
    text = (
        f"`{result['command']}`. The largest rate of Poisson arrivals with p99 <= "
        f"{result['p99LimitMs']:g} ms is **{largest}**. The driver alone makes {result['driverAlone']:.0f} requests a "
        "second against a server that does nothing.\n"
    )
    return "\n".join(
        [
            "## The service level of the default model\n",
            text,
            markdown(("requests/s, Poisson", "p50 ms", "p99 ms", "failed"), rows),
            markdown(("clients, closed loop", "answers/s", "p50 ms", "p99 ms"), batches),
            *caveat,
            *(f"![{text}](plots/{name})\n" for name, text in names.items()),
        ]
    )


def _draw_level(result: Result, plots: Path) -> dict[str, str]:
    plots.mkdir(exist_ok=True)
    load = result["load"]
    rates = [p["rps"] for p in load]
    _plot(
        plots / "latency.svg",
        ("requests per second, Poisson", "latency, ms"),
        {name: (rates, [p["latencyMs"][name] for p in load]) for name in ("p50", "p90", "p99")},
        limit=result["p99LimitMs"],
        log=True,
    )
    clients = result["clients"]
    _plot(
        plots / "throughput.svg",
        ("clients in a closed loop; batches form from them", "answers per second"),
        {"": ([p["clients"] for p in clients], [p["requestsPerSecond"] for p in clients])},
    )
    memory = result["level"]["memoryMiB"]
    _plot(
        plots / "memory.svg",
        ("seconds under load", "memory of the server and its workers, MiB"),
        {"": ([at for at, _ in memory], [size for _, size in memory])},
    )
    return {"latency.svg": "latency against load", "throughput.svg": "throughput", "memory.svg": "memory under load"}


def _plot(
    path: Path,
    axes_names: tuple[str, str],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    limit: float | None = None,
    log: bool = False,
) -> None:
    import matplotlib as mpl

    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "marsmith"
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for name, (across, up) in lines.items():
        axes.plot(across, up, marker="o", markersize=3, linewidth=1.2, label=name or None)
    if limit is not None:
        axes.axhline(limit, linestyle="--", linewidth=1, color="grey", label=f"limit, {limit:g} ms")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    if limit is not None or len(lines) > 1:
        axes.legend()
    tidy(figure)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _ready(result: Result, _plots: Path) -> str:
    base = result["seconds"]["load the file"]
    rows = [(name, f"{took:.2f}", f"{took / base:.2f}") for name, took in result["seconds"].items()]
    table = markdown(("", "seconds", "/ loading the file in a plain Python"), rows)
    return f"## Start-up\n\n`{result['command']}`, medians.\n\n{table}"


def _texts(title: str, *, closed_loops: bool = False) -> Callable[[Result, Path], str]:
    """Render a result that brings its own tables, as Markdown under ``tables``.

    Args:
        title: of the section.
        closed_loops: whether it has rates of closed loops with a warm-up.
    """

    def render(result: Result, _plots: Path) -> str:
        caveat = [TOO_LOW] if closed_loops and "rates" not in result else []
        return f"## {title}\n\n`{result['command']}`\n\n" + "\n".join([*caveat, *result.get("tables", [])])

    return render


SECTIONS: dict[str, Callable[[Result, Path], str]] = {
    "serving": _serving,
    "judged": _judged,
    "service_level": _service_level,
    "frontend": _texts("What the frontend takes"),
    "peers": _texts("Other servers with the same code", closed_loops=True),
    "stages": _texts("Where the time of a request goes"),
    "tuner": _texts("The tuner"),
    "optimize": _texts("Archives of the stock tool, optimized", closed_loops=True),
    "ready": _ready,
}
