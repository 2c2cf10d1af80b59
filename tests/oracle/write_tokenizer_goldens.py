"""Writes tests/golden/tokenizer/*.json with llama-cpp-python: token ids of hard texts and chats.

Run in an environment of its own that has llama-cpp-python:
    python tests/oracle/write_tokenizer_goldens.py smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/oracle/write_tokenizer_goldens.py gemma3 gemma-3-270m-q4_k_m.gguf
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

FOLDER = Path(__file__).parents[1] / "golden" / "tokenizer"

FIXED = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\t",
    " \n \n",
    "a",
    " a",
    "a ",
    "Hello, world!",
    "hello  world   x",
    "don't DON'T I'LL we'Ve they're",
    "1234567890 3.14159 0x1F 1e-9",
    "x = [i**2 for i in range(10)]\n",
    "def f(a, b):\n    return a + b\n\n\nclass C:\n\tpass\n",
    "The quick brown fox jumps over the lazy dog.",
    "naïve café résumé Ångström",
    "e\u0301 e\u0301\u0301 a\u0300\u0316",
    "你好，世界！今天天气很好。",
    "こんにちは世界 カタカナ 한국어 조선말",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم ١٢٣٤٥",
    "שלום עולם",
    "हिन्दी में पाठ",
    "ไทยไม่มีช่องว่าง",
    "🙂",
    "👨‍👩‍👧‍👦 family 🇫🇷🇩🇪 ❤️‍🔥",
    "𝔹𝕠𝕝𝕕 𝓼𝓬𝓻𝓲𝓹𝓽",
    "²½Ⅷ①",
    "\x00",
    "\x01\x02\x03\x04\x06\x13\x7f",
    "a\x00b\x1bc",
    "\ufeffbom",
    "\ufffd\ufffe\uffff",
    "\u2028\u2029\x85\x0b\x0c",
    "\u00a0\u2003\u3000wide",
    "\u200b\u200d\u2060",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|im_end|>",
    "<|endoftext|>",
    "<bos><eos><pad><unk>",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "</s><s>[INST]",
    "<0x0A><0x41>",
    "<unused5><unused99>",
    "[multimodal]",
    "<table><tr><td>x</td></tr></table>",
    "<|im_start|",
    "|im_end|>",
    "< |im_end|>",
    "banana anana ananana",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "=" * 100,
    "-" * 65 + ">",
    "." * 33,
    " " * 30,
    " " * 31,
    " " * 32,
    " " * 33,
    " " * 100 + "x",
    "x" + " " * 63 + "y",
    "\n" * 40,
    "\t" * 40,
    "\r\n" * 9,
    "▁▁ ▁a▁",
    "Ġhello Ċ",
    "https://example.org/a?b=c&d=%20#e",
    '{"a": [1, 2.5, null, "\\u00e9"]}',
]

CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "  Another one,\n\nplease 🙂  "},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": ""},
    ],
]


def random_texts(llama: Llama, count: int) -> list[str]:
    """Texts that tokens of this vocabulary and random characters make, whole characters only."""
    rng = random.Random(20)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 9)):
            if rng.random() < 0.7:
                parts.append(
                    llama.detokenize([rng.randrange(llama.n_vocab())], special=True).decode(
                        "utf-8", "replace"
                    )
                )
            else:
                point = rng.choice(
                    [rng.randrange(32, 127), rng.randrange(0x3000), rng.randrange(0x1F300, 0x1FAFF)]
                )
                parts.append(chr(point))
        texts.append("".join(parts))
    return texts


def main(name: str, path: str) -> None:
    llama = Llama(path, vocab_only=True, verbose=False)
    cases = []
    for text in FIXED + random_texts(llama, 80):
        raw = text.encode()
        plain = llama.tokenize(raw, add_bos=True, special=False)
        parsed = llama.tokenize(raw, add_bos=True, special=True)
        cases.append({"text": text, "plain": plain, "parsed": parsed})
    source = llama.metadata.get("tokenizer.chat_template")
    chats = []
    for messages in CHATS if source else []:
        for prompt in (True, False):
            names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
            formatter = Jinja2ChatFormatter(source, add_generation_prompt=prompt, **names)
            text = formatter(messages=messages).prompt
            ids = llama.tokenize(text.encode(), add_bos=False, special=True)
            chats.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": ids})
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(case) for case in cases]
    body = ",\n".join(lines)
    chat_body = ",\n".join(json.dumps(chat) for chat in chats)
    out = f'{{"texts": [\n{body}\n],\n"chats": [\n{chat_body}\n]}}\n'
    (FOLDER / f"{name}.json").write_text(out, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
