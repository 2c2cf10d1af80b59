"""Every instruction set computes the same bits: native/tests/kernel_digest.cc, compiled here and compared.

x86-64 targets run on this CPU; NEON is cross-compiled and emulated, its dot product instruction included.
NEON kernels are compiled as CMakeLists.txt says, the others with -O1: how hard a compiler tries must not
matter either, and what is installed is compared by test_native_targets.py.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
TARGETS = {  # of each machine: source, and the option of CMakeLists.txt that compiles it
    "x86_64": ("scalar.cc", "avx2.cc", "avx512_vnni.cc"),
    "aarch64": ("scalar.cc", "neon_dot.cc"),
}
CROSS = "aarch64-linux-gnu-g++"

pytestmark = pytest.mark.slow


def shared_sources() -> list[Path]:
    """What the digest needs beside the targets: the core without its Python face."""
    core = [path for path in sorted(NATIVE.glob("*.cc")) if not path.name.startswith("bind")]
    return [*core, NATIVE / "tests" / "kernel_digest.cc"]


def options_of(target: str) -> list[str]:
    """The compile options CMakeLists.txt gives a target's source; none for scalar.cc."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(rf'native/targets/{re.escape(target)} PROPERTIES COMPILE_OPTIONS\s+"([^"]+)"', text)
    return found[1].split(";") if found else []


def flags_for_all() -> list[str]:
    """The flags for every file, without the level of optimisation and the warnings."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(r"add_compile_options\(([^)]*)\)", text)
    assert found
    kept = [flag for flag in found[1].split() if flag.startswith("-f")]
    assert "-ffp-contract=off" in kept
    return ["-std=c++20", *kept]


def build(compiler: str, machine: str) -> Path:
    """The digest program, from the build folder if these sources were compiled before."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    inputs = [ROOT / "CMakeLists.txt", Path(__file__), *sorted(p for p in NATIVE.rglob("*") if p.is_file())]
    key = hashlib.sha256((version + machine).encode())
    for path in inputs:
        key.update(path.read_bytes())
    folder = ROOT / "build" / "kernel_digest" / f"{machine}-{key.hexdigest()[:16]}"
    program = folder / "kernel_digest"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        target = folder / (source.name + ".o")
        level = "-O3" if source.name == "neon_dot.cc" else "-O1"
        special = options_of(source.name) if source.parent.name == "targets" else []
        flags = [*flags_for_all(), level, *special, f"-I{NATIVE}"]
        run([compiler, *flags, "-c", str(source), "-o", str(target)])
        return target

    targets = [NATIVE / "targets" / name for name in TARGETS[machine]]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*targets, *shared_sources()]))
    unfinished = folder / "unfinished"
    run([compiler, "-static", *map(str, objects), "-pthread", "-o", str(unfinished)])
    unfinished.rename(program)
    for path in objects:
        path.unlink()
    return program


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a command prints; its error output in the failure."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}{done.stdout[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def host_lines() -> list[str]:
    """What the scalar target of this machine makes of everything."""
    program = build(host_compiler(), host_machine())
    lines = run([str(program)], {"STOKER_TARGET": "scalar"}).splitlines()
    assert len(lines) > 500  # of norms, linear layers, attention, sampling, whole models
    return lines


def host_machine() -> str:
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if machine not in TARGETS:
        pytest.skip(f"there is no target for {machine}")
    return machine


def host_compiler() -> str:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    return compiler


@pytest.mark.parametrize("target", ["avx2", "avx512", "neon"])
def test_a_target_of_this_machine_equals_scalar(target: str, host_lines: list[str]) -> None:
    native = pytest.importorskip("stoker._native", reason="the native core is not built")
    if target not in native.available_targets.split(", "):
        pytest.skip(f"this machine runs {native.available_targets}")
    program = build(host_compiler(), host_machine())
    assert run([str(program)], {"STOKER_TARGET": target}).splitlines() == host_lines


def test_emulated_neon_equals_this_machine(host_lines: list[str]) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if host_machine() == "aarch64":
        pytest.skip("NEON is this machine's own target")
    if emulator is None or shutil.which(CROSS) is None:
        pytest.skip(f"{CROSS} and qemu-aarch64 are not here (scripts/install-neon-tools installs them)")
    program = build(CROSS, "aarch64")
    assert run([emulator, str(program)], {"STOKER_TARGET": "neon"}).splitlines() == host_lines
