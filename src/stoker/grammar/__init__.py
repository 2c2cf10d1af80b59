"""What an answer may look like, token by token: grammars, JSON Schema, thinking with a budget.

Only the contract is imported here: the engine knows guides, and whoever loads a model imports
`stoker.grammar.compiler`, and llguidance with it, when the first constraint comes.
"""

from stoker.grammar.guide import Guide, Guides, MaskRow, mask_words

__all__ = ["Guide", "Guides", "MaskRow", "mask_words"]
