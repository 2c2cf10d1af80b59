"""POST /v1/messages and /v1/messages/count_tokens, in Anthropic's dialect: fields, events, errors."""

from stoker.server.messages.endpoint import CountTokens, Messages
from stoker.server.messages.errors import answer_messages_problem, speaks_messages

__all__ = ["CountTokens", "Messages", "answer_messages_problem", "speaks_messages"]
