"""What a dialect calls the fields that can be to blame."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Those of /v1/chat/completions, unless told otherwise; `{}` is the number of the entry."""

    messages: str = "messages"
    tools: str = "tools"
    tool_name: str = "tools[{}].function.name"
    tool_parameters: str = "tools[{}].function.parameters"
    tool_choice: str = "tool_choice"
    tool_call_id: str = "messages[{}].tool_call_id"
    tool_calls: str = "messages[{}].tool_calls"
    name: str = "messages[{}].name"
    constraint: str = "response_format"
    effort: str = "reasoning_effort"
    budget: str = "thinking_token_budget"
    variables: str = "chat_template_kwargs"


CHAT_FIELDS = FieldNames()
