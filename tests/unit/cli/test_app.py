"""The border: what stands on stdout and stderr, and with which status the program leaves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gguf_builder import ARRAY, GGUF, STRING, U32, Tensor

from .fakes import FAILURE

ROOT = Path(__file__).parents[3]


def _tiny_file() -> bytes:
    """A file that opens, with a name that tries to move the cursor and a list too long to show."""
    file = GGUF(
        keys=[
            ("general.architecture", STRING, "llama"),
            ("general.name", STRING, "tiny \x1b[2J model"),
            ("tokens", ARRAY, (STRING, [f"t{i}" for i in range(100)])),
            ("note", STRING, "long " * 50),
            ("llama.context_length", U32, 64),
        ],
        tensors=[Tensor("token_embd.weight", [32, 4], 2, 0)],
        data=bytes(4 * 18),
    )
    return file.to_bytes()


def _stoker(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a user runs it, in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
    return subprocess.run(
        [sys.executable, "-m", "stoker", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


def test_help_and_version_need_nothing_heavy() -> None:
    """numpy alone takes longer to import than help may take; none of these is loaded for it."""
    script = (
        "import sys; sys.argv = ['stoker', '--help']\n"
        "from stoker.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as leaving:\n"
        "    heavy = {'numpy', 'rich', 'tokenizers', 'jinja2', 'stoker.llm'} & set(sys.modules)\n"
        "    print(leaving.code, sorted(heavy))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert shown.stdout.splitlines()[-1] == "0 []"
    assert "run" in shown.stdout


def test_version() -> None:
    shown = _stoker("--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("stoker ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "m", "--threads", "0"],
        ["run", "m", "--threads", "x"],
        ["run", "m", "--threads", "257"],
        ["bench", "m", "--threads", "257"],
        ["nonsense"],
        ["run", "--nonsense"],
    ],
)
def test_wrong_usage_is_status_2_with_nothing_on_stdout(arguments: list[str]) -> None:
    shown = _stoker(*arguments)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert "Usage: stoker" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "./missing.gguf", "x"], "missing.gguf"),
        (["inspect", "no-such-model"], "no-such-model"),
        (["inspect", "."], "folder"),
        (["pull", "no-such-model"], "known names"),
        (["run", "smollm2", "x", "--temperature", "-1"], "temperature is -1"),
        (["run", "smollm2", "x", "--top-p", "nan"], "top_p is nan"),
        (["run", "smollm2", "x", "--seed", "-1"], "seed is -1"),
        (["run", "smollm2", ""], "the prompt is empty"),
        (["run", "smollm2", " \n"], "the prompt is empty"),
        (["run", "smollm2"], "the prompt is empty"),  # from stdin
    ],
)
def test_an_error_is_one_line_on_stderr_and_status_1(tmp_path: Path, arguments: list[str], says: str) -> None:
    shown = _stoker(*arguments, STOKER_HOME=str(tmp_path), HOME=str(tmp_path))
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("stoker: error: ")
    assert shown.stderr.count("\n") == 1
    assert says in shown.stderr


@pytest.mark.parametrize("how", [["--debug"], []])
def test_a_traceback_shows_only_when_it_is_asked_for(how: list[str]) -> None:
    environment = {} if how else {"STOKER_DEBUG": "1"}
    assert "Traceback" in _stoker(*how, "inspect", "no-such-model", **environment).stderr
    assert "Traceback" not in _stoker("inspect", "no-such-model").stderr


def test_a_target_that_is_not_here_is_refused_with_those_that_are() -> None:
    pytest.importorskip("stoker._native", reason="the native core is not built: make builds it")
    shown = _stoker("version", STOKER_TARGET="abacus")
    assert shown.returncode == 1
    assert shown.stderr.startswith("stoker: error: STOKER_TARGET is 'abacus'; ")
    assert "scalar" in shown.stderr
    assert _stoker("version", STOKER_TARGET="scalar").stdout.splitlines()[-1].split() == ["target", "scalar"]


def test_options_have_variables() -> None:
    shown = _stoker("run", "./missing.gguf", "x", STOKER_TEMPERATURE="-3")
    assert "temperature is -3" in shown.stderr
    assert _stoker("run", "./missing.gguf", "x", STOKER_THREADS="none").returncode == 2


def test_list_shows_known_names_and_what_is_here(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(_tiny_file())
    shown = _stoker("list", STOKER_HOME=str(tmp_path), HOME=str(tmp_path))
    assert "stoker pull smollm2" in shown.stdout
    assert "tiny" in shown.stdout
    models = json.loads(_stoker("list", "--json", STOKER_HOME=str(tmp_path), HOME=str(tmp_path)).stdout)[
        "models"
    ]
    assert {model["name"] for model in models if model["path"] is None} == {"smollm2", "gemma3-270m"}
    assert [model["origin"] for model in models if model["path"]] == ["stoker"]


def test_inspect_shows_metadata_and_tensors_and_nothing_a_terminal_would_act_on(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(_tiny_file())
    shown = _stoker("inspect", str(path)).stdout
    golden = ROOT / "tests" / "golden" / "cli" / "inspect.txt"
    assert shown.replace(str(path), "PATH") == golden.read_text(encoding="utf-8")
    as_json = json.loads(_stoker("inspect", str(path), "--json").stdout)
    assert [tensor["name"] for tensor in as_json["tensors"]] == ["token_embd.weight"]
    assert "tensors" not in json.loads(_stoker("inspect", str(path), "--json", "--no-tensors").stdout)


def test_serve_lets_nobody_in_from_elsewhere_without_a_key() -> None:
    shown = _stoker("serve", "smollm2", "--host", "0.0.0.0", "--port", "0")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "there is no API key" in shown.stderr
    assert shown.stderr.count("\n") == 1


def _in_shell(redirections: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program with standard streams that only a shell can make."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "stoker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"]])
def test_a_full_device_is_one_line(arguments: list[str]) -> None:
    shown = _in_shell("> /dev/full", *arguments)
    assert shown.returncode == 1
    assert shown.stderr == f"stoker: error: cannot write the output: {os.strerror(errno.ENOSPC)}\n"


@pytest.mark.parametrize(
    ("redirection", "says"), [("<&-", "the prompt is empty"), (">&-", "stdout is closed")]
)
def test_a_closed_stream_is_one_line(redirection: str, says: str) -> None:
    shown = _in_shell(redirection, "run", "smollm2")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert says in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_what_stderr_does_not_take_goes_nowhere_else(redirection: str) -> None:
    if redirection.endswith("full") and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    shown = _in_shell(redirection, "inspect", "no-such-model")
    assert (shown.returncode, shown.stdout, shown.stderr) == (1, "", "")


def test_what_stdout_cannot_encode_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "tïny.gguf"
    path.write_bytes(_tiny_file())
    shown = _stoker("inspect", str(path), PYTHONIOENCODING="ascii")
    assert shown.returncode == 0
    assert "t\\xefny.gguf" in shown.stdout
    as_json = _stoker("inspect", str(path), "--json", PYTHONIOENCODING="ascii").stdout
    assert as_json.isascii()
    assert json.loads(as_json)["files"] == [str(path)]


def test_stdin_that_is_no_text_is_refused() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "stoker", "run", "smollm2"],
        input=b"\xff\xfe",
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"},
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith(b"stoker: error: stdin is not text in utf-8")


def _main_after(lines: str) -> subprocess.CompletedProcess[str]:
    """`stoker list` in a process where `lines` ran first."""
    script = f"import sys; sys.argv = ['stoker', 'list']\n{lines}\nfrom stoker.cli import main\nmain()\n"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def test_ctrl_c_while_loading_is_silent() -> None:
    shown = _main_after(
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())"
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "", "")


@pytest.mark.parametrize("details", ["", "Unable to allocate 3 TiB"])
def test_too_little_memory_is_one_line(details: str) -> None:
    shown = _main_after(
        "import stoker.weights.store as store\n"
        f"def full():\n    raise MemoryError({details!r})\n"
        "store.list_models = full"
    )
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("stoker: error: not enough memory")
    assert details in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_failure_of_the_model_is_one_line_and_status_1(options: list[str]) -> None:
    """The whole command, with a model that fails after its second token."""
    script = (
        f"import sys; sys.argv = ['stoker', 'run', 'x.gguf', 'hi', *{options!r}]\n"
        "from stoker.cli import compose, main\n"
        "from tests.unit.cli.fakes import ScriptedModel\n"
        "compose.open_talker = lambda *_, **__: ScriptedModel('ab^E').talker()\n"
        "main()\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1] == f"stoker: error: {FAILURE}"
    if options:
        answer = json.loads(shown.stdout)
        assert (answer["finish_reason"], answer["stop_reason"]) == ("error", FAILURE)
    else:
        assert shown.stdout == "ab\n"
