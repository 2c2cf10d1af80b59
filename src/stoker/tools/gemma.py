"""Gemma's calls: its template knows no tools, it was taught to call them in a block of tool_code."""

from __future__ import annotations

from stoker.tools.format import CallFormat
from stoker.tools.parser import CallMarks
from stoker.tools.plain import Plain

_MARKS = CallMarks(
    heads=('```tool_code\n{"name": "',),
    triggers=("```tool_code",),
    tail='", "parameters": ',
    end="}\n```",
    between="\n",
)

GEMMA = CallFormat(
    "gemma",
    _MARKS,
    Plain(
        _MARKS,
        instructions=(
            "You have access to functions. If you decide to call one, write its name and its parameters as "
            "JSON in a block of tool_code, in this form and nothing else:\n"
            '```tool_code\n{"name": "<name>", "parameters": {<parameters>}}\n```\n'
            "Its result comes back in a block of tool_output. The functions, with the JSON Schema of their "
            "parameters:"
        ),
        result="```tool_output\n{}\n```",
    ).render,
)
