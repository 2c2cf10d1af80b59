"""How much a grammar may cost, counted in work and never in time, so that the same is refused everywhere."""

from __future__ import annotations

from llguidance import LLParserLimits

# Fuel for making the lexer of a grammar: about 50 000 a millisecond, so at most a few tenths of a second.
COMPILE_FUEL = 5_000_000
# Symbols in productions.
GRAMMAR_SYMBOLS = 300_000
# Fuel of one mask: about 14 000 a millisecond.
STEP_FUEL = 200_000
# Earley items of one mask, about 20 000 a millisecond.
STEP_ITEMS = 200_000
# Of them in one row: an object of 3000 optional properties has 12 000 after its first quotation mark.
ROW_ITEMS = 40_000
# States of a lexer, 1 to 2 kB each.
LEXER_STATES = 50_000

# Compiled grammars that are kept: an engine serves few schemas at a time, but those for many requests.
CACHED_GRAMMARS = 256
# Their sources together; what they hold compiled is some ten times that.
CACHED_CHARS = 16 << 20


def parser_limits() -> LLParserLimits:
    """The limits as llguidance takes them."""
    return LLParserLimits(
        initial_lexer_fuel=COMPILE_FUEL,
        step_lexer_fuel=STEP_FUEL,
        step_max_items=STEP_ITEMS,
        max_items_in_row=ROW_ITEMS,
        max_lexer_states=LEXER_STATES,
        max_grammar_size=GRAMMAR_SYMBOLS,
        verbose_errors=False,
    )
