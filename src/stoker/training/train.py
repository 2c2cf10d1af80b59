"""`stoker train-draft` from one end to the other: text, states, training, file, card.

Each part is kept in a folder, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from stoker.api.errors import RequestError
from stoker.api.request import check_int
from stoker.engine.load import MAX_THREADS, LoadOptions, load_text_engine
from stoker.engine.scheduler import SchedulerOptions
from stoker.kernels.cores import physical_cores
from stoker.kernels.lowering import VECTOR_WIDTH
from stoker.kernels.native import NativeInterpreter
from stoker.kernels.program import Float32, Int32
from stoker.models.config import config_from_gguf
from stoker.models.load import load_native
from stoker.speculation.head_format import EAGLE, KINDS, MEDUSA, HeadIdentity
from stoker.training.corpus import Corpus
from stoker.training.dataset import Dataset, compute_dataset, load_dataset, read_layers
from stoker.weights.digest import model_digest
from stoker.weights.gguf import GGUFFile

if TYPE_CHECKING:  # it needs torch
    from stoker.training.kinds import Lesson
    from stoker.training.trainer import Report

UNROLL: Final[Mapping[str, int]] = MappingProxyType({EAGLE: 3, MEDUSA: 4})
_KV_BYTES: Final = 1 << 30  # of one conversation at a time
Told = Callable[[str, int, int, str], None]  # (part, done, of how many, what to say of it)


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """What to train. The head that comes with SmolLM2 was made with like ones: its card says which."""

    answer_tokens: int = 650_000
    answer_length: int = 256  # most tokens of an answer
    steps: int = 1800
    kind: str = EAGLE
    unroll: int | None = None  # draft steps to train on; a Medusa head has as many blocks. None: UNROLL
    vocabulary: int = 4096  # more cost time and were not drafted better: docs/decisions/0010
    window: int = 128
    passes: int = 5  # most tokens that an EAGLE head drafts
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        check_int("answer_tokens", self.answer_tokens, 1, 1 << 31)
        check_int("answer_length", self.answer_length, 8, 1 << 20)
        check_int("steps", self.steps, 1, 1 << 31)
        if self.kind not in KINDS:
            raise RequestError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        check_int("unroll", self.depth, 1, 8)
        check_int("vocabulary", self.vocabulary, VECTOR_WIDTH, 1 << 20)
        check_int("window", self.window, 16, 4096)
        check_int("passes", self.passes, 1, 16)

    @property
    def depth(self) -> int:
        """Draft steps to train on."""
        return UNROLL[self.kind] if self.unroll is None else self.unroll


class Trained(NamedTuple):
    """A head that was written, and how it does on answers it was not trained on."""

    path: Path
    card: Path
    accepted: tuple[float, ...]  # by depth, if all before was right
    tokens_per_step: float


def train_draft(
    model: Path, folder: Path, out: Path, options: DraftOptions, *, questions: tuple[str, ...], told: Told
) -> Trained:
    """Train a draft head for a model and write it, with its card beside it.

    Raises `RequestError` where torch is missing, the text is too short, or `folder` belongs to another run,
    and what loading the model raises.
    """
    try:
        from stoker.training import export, trainer
    except ImportError as error:
        raise RequestError(
            f"training needs a package that is not installed: {error.name}",
            hint="pip install 'stoker[train]'",
        ) from error
    _check_writable(out)
    folder.mkdir(parents=True, exist_ok=True)
    digest = model_digest(model)
    _claim(folder, digest, options, questions)
    data = _data(model, folder, options, questions, told)
    lesson, embeddings, output = _begin(model, folder, options)
    draft_vocabulary = choose_vocabulary(data, min(options.vocabulary, len(embeddings)))
    run = trainer.Trainer(
        lesson.module,
        lesson.unrolled,
        data,
        trainer.Target(embeddings, output, draft_vocabulary),
        trainer.TrainOptions(
            steps=options.steps,
            unroll=options.depth,
            unrolled_share=lesson.unrolled_share,
            seed=options.seed,
        ),
        lesson.checkpoint,
    )
    run.resume()

    def progress(step: int, loss: float, report: trainer.Report | None) -> None:
        said = "" if report is None else f", held out {report.tokens_per_step:.2f} tokens a step"
        told("training", step, options.steps, f"loss {loss:.3f}{said}")

    report = run.run(progress)
    card = _card(model, digest, data, options, len(draft_vocabulary), lesson, report)
    export.write_head(
        out,
        identity=HeadIdentity(options.kind, digest, len(embeddings), lesson.passes),
        shape=lesson.shape,
        draft_vocabulary=draft_vocabulary,
        tensors=_trained_tensors(lesson),
        matrix_type=lesson.matrix_type,
        finer=lesson.finer,
        card=card,
    )
    card_path = out.with_suffix(".md")
    card_path.write_text(card, encoding="utf-8")
    return Trained(out, card_path, report.accepted, report.tokens_per_step)


def _trained_tensors(lesson: Lesson) -> dict[str, Float32]:
    """By their names in the file."""
    return {
        name: lesson.module.get_parameter(parameter).detach().float().cpu().numpy()
        for parameter, name in lesson.tensors.items()
    }


def _begin(model: Path, folder: Path, options: DraftOptions) -> tuple[Lesson, Float32, Float32]:
    """A new head of the wanted kind, and the target's embeddings and output rows."""
    import torch

    from stoker.training import kinds

    with GGUFFile.open(model) as file:
        config = config_from_gguf(file.metadata, file.tensors)
        embeddings = kinds.read_tensor(file, "token_embd.weight")
        output = kinds.read_tensor(file, "output.weight") if config.has("output.weight") else embeddings
        torch.manual_seed(options.seed)
        lesson = kinds.lesson(
            options.kind, file, config, folder,
            passes=options.passes, unroll=options.depth, window=options.window,
        )  # fmt: skip
    return lesson, embeddings, output


def choose_vocabulary(data: Dataset, size: int) -> Int32:
    """[size] the ids that answers have most often, ascending; a multiple of the kernels' width."""
    counts = np.bincount(data.token_ids[data.answers])
    counts = np.pad(counts, (0, max(size - len(counts), 0)))
    most = np.argsort(-counts, kind="stable")[: size // VECTOR_WIDTH * VECTOR_WIDTH]
    return np.sort(most).astype(np.int32)


def read_questions(path: Path) -> tuple[str, ...]:
    """The prompts of a file: a JSON object with a "prompt" in each line, or a line of text each.

    Raises `RequestError` for a file that cannot be read or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # only these: JSON may hold U+2028 as it is
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}; allowed: prompts as UTF-8 text") from error
    found = tuple(filter(None, (_question(line.strip()) for line in lines)))
    if not found:
        raise RequestError(f'{path} has no prompts; allowed: one in each line, or {{"prompt": ...}} in each')
    return found


def _question(line: str) -> str:
    if line.startswith("{"):
        try:
            prompt = json.loads(line).get("prompt")
        except ValueError:
            return line
        return prompt if isinstance(prompt, str) else ""
    return line


def _check_writable(out: Path) -> None:
    """Raises `RequestError` now, not after hours."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(out.parent, os.W_OK) and not out.is_dir() else "cannot be written to"
    except OSError as error:
        problem = f"cannot be made: {error}"
    if problem is not None:
        raise RequestError(f"{out} {problem}; allowed: the path of a file in a folder that can be written to")


def _claim(folder: Path, digest: str, options: DraftOptions, questions: tuple[str, ...]) -> None:
    """Write down whose run the folder holds, or compare. Text and states depend on these alone."""
    mine = {
        "target_digest": digest,
        "seed": options.seed,
        "answer_length": options.answer_length,
        "answer_tokens": options.answer_tokens,
        "questions": len(questions),
        "questions_digest": hashlib.sha256("\0".join(questions).encode("utf-8", "surrogatepass")).hexdigest(),
    }
    note = folder / "run.json"
    if not note.exists():
        note.write_text(json.dumps(mine), encoding="utf-8")
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != mine:
        raise RequestError(
            f"{folder} holds a run with {found}; allowed: {mine}",
            hint="take another folder, or the same options",
        )


def _data(
    model: Path, folder: Path, options: DraftOptions, questions: tuple[str, ...], told: Told
) -> Dataset:
    """Generate and compute what is not there yet; the engine is let go afterwards."""
    corpus = Corpus(folder / "corpus.jsonl")
    there = sum(len(one.answer) for one in corpus.read())
    done = load_dataset(folder)
    if done is not None and done.features.shape[1] != _said_width(model):
        done = None  # of an older run, which kept less of a token
    if done is not None and there >= options.answer_tokens and done.answer_tokens == there:
        return done
    loading = LoadOptions(threads=options.threads, speculation="off")
    text = load_text_engine(model, loading, seeds=_NoSeeds())
    corpus.generate(
        text,
        answer_tokens=options.answer_tokens,
        most_tokens_each=options.answer_length,
        questions=questions,
        seed=options.seed,
        progress=lambda count, total: told("text", count, total, "tokens of answers"),
    )
    text.engine.close()
    if done is not None and done.answer_tokens == sum(len(one.answer) for one in corpus.read()):
        return done  # there were no more questions
    del text  # its keys and values take room
    return compute_dataset(
        folder,
        list(corpus.read()),
        _reading(model, options.threads or min(physical_cores(), MAX_THREADS)),
        batch_tokens=loading.scheduler.batch_tokens,
        progress=lambda count, total: told("states", count, total, "tokens"),
    )


def _said_width(model: Path) -> int:
    """Numbers that the target says of a token."""
    with GGUFFile.open(model) as file:
        config = config_from_gguf(file.metadata, file.tensors)
    return config.width * (1 + len(read_layers(config.layers)))


def _reading(model: Path, threads: int) -> NativeInterpreter:
    """The target, which also says what heads read of its layers."""
    with GGUFFile.open(model) as file:
        layers = read_layers(config_from_gguf(file.metadata, file.tensors).layers)
        return load_native(
            file,
            threads=threads,
            kv_bytes=_KV_BYTES,
            batch_tokens=SchedulerOptions().batch_tokens,
            draft_layers=layers,
        )


def _card(
    model: Path,
    digest: str,
    data: Dataset,
    options: DraftOptions,
    vocabulary: int,
    lesson: Lesson,
    report: Report,
) -> str:
    by_depth = ", ".join(f"{share:.0%}" for share in report.accepted)
    return f"""# Draft head for {model.name}

- Kind: {lesson.what}, {lesson.matrix_type}.
- Target: SHA-256 {digest}. It drafts for no other file.
- Data: {data.conversations} conversations, {data.answer_tokens} tokens of answers, all generated by the
  target itself (seed {options.seed}, temperatures 0, 0.7, 0 and 1 in turn, at most
  {options.answer_length} tokens each).
- Training: {options.steps} steps of about 2048 tokens, {lesson.how}.
- Draft vocabulary: {vocabulary} tokens, the most frequent of the answers.
- Held out (every 20th conversation), the head's likeliest token against the target's, each depth given that
  all before was right: {by_depth}. A chain as deep brings {report.tokens_per_step:.2f} tokens a step.

Answers never depend on a head: every drafted token is verified.
"""


class _NoSeeds:
    """Every request of the corpus brings its seed."""

    def draw(self) -> int:
        """Never asked for."""
        return 0
