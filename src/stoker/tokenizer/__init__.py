"""Text to token ids and back: tokenizers from GGUF metadata, streaming detokenizing, chat templates."""

from stoker.tokenizer.detokenize import Detokenizer, StopResult, StopStrings
from stoker.tokenizer.tokenizer import Tokenizer, build_tokenizer, load_tokenizer

__all__ = [
    "Detokenizer",
    "StopResult",
    "StopStrings",
    "Tokenizer",
    "build_tokenizer",
    "load_tokenizer",
]
