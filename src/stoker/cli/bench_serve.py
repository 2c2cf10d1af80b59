"""`stoker bench serve`: a load on an OpenAI endpoint, measured where its clients are."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from stoker.api.errors import RequestError
from stoker.cli.options import JsonOption
from stoker.cli.output import print_json, print_table, say, step_progress

FAILED_STATUS = 1
SEED_BITS = 32  # of a seed that nobody chose: short enough to be typed again

# What the table calls the figures whose names in JSON are on the left.
LABELS: Mapping[str, str] = MappingProxyType(
    {
        "ttft_ms": "time to first token",
        "itl_ms": "inter-token latency",
        "gap_ms": "between reads",
        "tpot_ms": "time per output token",
        "e2e_ms": "end to end",
        "itl_during_intruder_ms": "inter-token, intruder waiting",
    }
)

UrlOption = Annotated[str, typer.Option("--url", help="Where the endpoint is, without /v1.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Its name there. [default: the first that the server names]")
]
ApiOption = Annotated[str, typer.Option("--api", help="completions or chat.")]
KeyOption = Annotated[
    str | None, typer.Option("--api-key", envvar="STOKER_API_KEY", help="Sent as a bearer token.")
]
ScenarioOption = Annotated[
    str,
    typer.Option(
        "--scenario",
        help="burst, shared-prefix, cached-ttft or intruder: values for all that is not given below.",
    ),
]
RequestsOption = Annotated[
    int | None, typer.Option("--requests", min=1, help="Requests in all. [default: the scenario's, 64]")
]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option("--concurrency", min=1, help="Requests at a time. [default: the scenario's, 32]"),
]
RateOption = Annotated[
    float | None,
    typer.Option("--rate", help="Requests per second in Poisson arrivals, instead of --concurrency."),
]
PromptTokensOption = Annotated[
    int | None,
    typer.Option(
        "--prompt-tokens", min=1, help="Tokens of each prompt's own part. [default: the scenario's, 64]"
    ),
]
OutputTokensOption = Annotated[
    int | None,
    typer.Option("--output-tokens", min=1, help="Tokens of each answer. [default: the scenario's, 64]"),
]
SharedPrefixOption = Annotated[
    int | None,
    typer.Option(
        "--shared-prefix-tokens",
        min=0,
        help="Tokens before the own part, the same for all. [default: the scenario's, 0]",
    ),
]
WarmupOption = Annotated[
    int | None, typer.Option("--warmup", min=0, help="Requests before, not counted. [default: 4]")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Of prompts and arrivals. [default: another each time, reported]"),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0, help="0: always the likeliest token.")
]
CountIdsOption = Annotated[
    bool,
    typer.Option("--count-ids", help="Count tokens by return_token_ids, not by events and usage."),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds until a request counts as an error.")
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE.svg", help="Write distributions as a picture.")
]


def bench_serve(
    url: UrlOption = "http://127.0.0.1:8000",
    model: ModelOption = None,
    api: ApiOption = "completions",
    api_key: KeyOption = None,
    scenario: ScenarioOption = "burst",
    requests: RequestsOption = None,
    concurrency: ConcurrencyOption = None,
    rate: RateOption = None,
    prompt_tokens: PromptTokensOption = None,
    output_tokens: OutputTokensOption = None,
    shared_prefix_tokens: SharedPrefixOption = None,
    warmup: WarmupOption = None,
    seed: SeedOption = None,
    temperature: TemperatureOption = 0.0,
    count_ids: CountIdsOption = False,
    timeout_s: TimeoutOption = 600.0,
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a load on an OpenAI endpoint and measure what its clients see.

    Time to first token, latency between tokens, time to the end, and throughput, of Stoker's server or any
    other. Status 1 if no request was answered; docs/guides/measure.md explains the figures.
    """
    from stoker.bench.serve import Serving, measure_serving
    from stoker.bench.serve_target import check_api

    if not math.isfinite(timeout_s) or not math.isfinite(temperature):
        raise RequestError(f"--timeout is {timeout_s}, --temperature {temperature}; allowed: finite numbers")
    if rate is not None and concurrency is not None:
        raise RequestError("--rate and --concurrency are both given; allowed: one of them")
    asked = {
        "requests": requests,
        "concurrency": concurrency,
        "rate": rate,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "shared_prefix_tokens": shared_prefix_tokens,
        "warmup": warmup,
    }
    load = changed_load(scenario, {name: value for name, value in asked.items() if value is not None})
    serving = Serving(url, model, check_api(api), api_key, temperature, count_ids, timeout_s)
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    with step_progress(f"bench {url}") as update:
        result, samples = measure_serving(
            serving, load, seed=seed, scenario=scenario, warn=say, progress=update
        )
    if as_json:
        print_json(result)
    else:
        _print(result)
    if plot is not None:  # last: a file that cannot be written must not cost the figures
        _write_plot(plot, result, samples)
    if not result["completed"]:
        raise typer.Exit(FAILED_STATUS)


def changed_load(scenario: str, changes: dict[str, Any]) -> Any:
    """The load called `scenario` with some values of the user's. Raises RequestError for unknown names."""
    from stoker.bench.serve_scenarios import SCENARIOS

    if scenario not in SCENARIOS:
        raise RequestError(f"scenario is {scenario!r:.80}; allowed: {', '.join(SCENARIOS)}")
    load = SCENARIOS[scenario]
    if load.intruder_tokens and "concurrency" in changes:
        changes = {"requests": changes["concurrency"], **changes}  # one for each stream
    return dataclasses.replace(load, **changes)


def _write_plot(path: Path, result: dict[str, Any], samples: Any) -> None:
    from stoker.bench.serve_plot import plot_run

    try:
        path.write_text(plot_run(result, samples), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write the plot {str(path)!r}: {error.strerror}") from error


def _print(result: dict[str, Any]) -> None:
    from stoker.bench.serve_summary import PERCENTILES

    statistics = ("mean", *(f"p{percent}" for percent in PERCENTILES))
    names = [key.removesuffix("_mean") for key in result if key.endswith("_ms_mean")]
    print_table(
        ("MILLISECONDS", *(name.upper() for name in statistics)),
        [(LABELS.get(name, name), *(_shown(result[f"{name}_{s}"]) for s in statistics)) for name in names],
    )
    in_table = {f"{name}_{s}" for name in names for s in statistics}
    rest = [(key, _shown(value)) for key, value in result.items() if key not in in_table]
    print()
    print_table(("WHAT", "MEASURED"), [row for row in rest if row[1]])


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.2f}"
    return str(value)
