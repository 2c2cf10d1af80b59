"""Calls of models whose template knows no tools: the system message explains them, turns show them."""

from __future__ import annotations

from stoker.tools.format import CallFormat
from stoker.tools.hermes import HERMES_MARKS
from stoker.tools.plain import Plain

GENERIC = CallFormat(
    "generic",
    HERMES_MARKS,
    Plain(
        HERMES_MARKS,
        instructions=(
            "You can call tools. To call one, write its name and its arguments as JSON, in this form and "
            "nothing else:\n"
            '<tool_call>\n{"name": "<name>", "arguments": {<arguments>}}\n</tool_call>\n'
            "The result comes back between <tool_response> and </tool_response>. "
            "The tools, with the JSON Schema of their arguments:"
        ),
    ).render,
)
