"""`stoker run`: one answer, or a chat when there is nothing to answer yet."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stoker.api.errors import RequestError
from stoker.cli import INTERRUPTED_STATUS
from stoker.cli.options import ContextOption, DraftModelOption, JsonOption, ModelArgument, ThreadsOption
from stoker.cli.output import print_json, say
from stoker.cli.talk import INTERRUPTED, Answer

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[PROMPT]",
        help="The question. Left out: a chat on a terminal, otherwise read from stdin.",
        show_default=False,
    ),
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system", "-s", envvar="STOKER_SYSTEM", help="A system message before the chat."),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=1,
        envvar="STOKER_MAX_TOKENS",
        help="Most tokens of an answer. [default: what the context holds; 256 without a chat template]",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option("--temperature", envvar="STOKER_TEMPERATURE", help="0: always the likeliest token."),
]
TopPOption = Annotated[
    float,
    typer.Option("--top-p", envvar="STOKER_TOP_P", help="Keep the likeliest tokens that reach this sum."),
]
TopKOption = Annotated[
    int,
    typer.Option("--top-k", envvar="STOKER_TOP_K", help="Keep this many of the likeliest tokens; 0: all."),
]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p", envvar="STOKER_MIN_P", help="Drop tokens less likely than this times the likeliest."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", envvar="STOKER_SEED", help="Same seed, same answer. [default: a new one each time]"
    ),
]
RawOption = Annotated[
    bool,
    typer.Option("--raw", envvar="STOKER_RAW", help="Complete the text as it is, without the chat template."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also say what was loaded, how, and the seed, on stderr.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Leave out speeds and notes on stderr.")]


def run(
    model: ModelArgument,
    prompt: PromptArgument = None,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.05,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    context: ContextOption = None,
    draft_model: DraftModelOption = None,
    raw: RawOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer a prompt, or chat.

    A known model that is not on this machine is fetched first.
    In a chat, Ctrl-C stops an answer; Ctrl-D, or Ctrl-C twice at the prompt, leaves; /help says more.
    Models without a chat template (base models) go on with the text they are given.
    """
    from stoker.cli import compose
    from stoker.cli.chat import chat
    from stoker.cli.pull import fetch_if_missing

    if prompt is None and not sys.stdin.isatty():
        prompt = _read_stdin()
    if prompt is not None:
        _check_prompt(prompt)
    sampling = compose.sampling_params(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
    )
    for name in (model, draft_model):
        if name is not None:
            fetch_if_missing(name)
    talker = compose.open_talker(
        model,
        sampling=sampling,
        threads=threads,
        context_tokens=context,
        draft_model=draft_model,
        system=system,
        raw=raw,
    )
    if verbose:
        say(talker.description())
    if prompt is None:
        if as_json:
            raise typer.BadParameter("--json needs a PROMPT, as argument or on stdin", param_hint="--json")
        chat(talker, show_timing=not quiet)
        return
    if not (talker.is_chat or raw or quiet):
        say(f"{talker.name} has no chat template: it goes on with the text, rather than answer it")
    _answer(talker.answer(prompt), as_json=as_json, verbose=verbose, quiet=quiet)


def _answer(answer: Answer, *, as_json: bool, verbose: bool, quiet: bool) -> None:
    """Print it as it comes, and what is said about it; raises Exit or EngineError unless it ends well."""
    if as_json:
        for _ in answer:
            pass
        print_json(answer.as_dict())
    else:
        answer.print_text()
    if verbose:
        say(f"seed {answer.seed}; finished: {answer.finish_reason}")
    if not quiet:
        say(answer.timing.sentence())
    answer.check()
    if answer.finish_reason == INTERRUPTED:
        raise typer.Exit(INTERRUPTED_STATUS)


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"stdin is not text in {error.encoding}: {error.reason}") from error


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise RequestError(
            "the prompt is empty; allowed: a text, as argument or on stdin",
            hint="for a chat leave it out, on a terminal",
        )
