"""Answers of chats that are kept because their request said so: stored, listed, changed, deleted."""

from stoker.server.stored_chats.handlers import stored_chat_routes
from stoker.server.stored_chats.keep import ChatStore

__all__ = ["ChatStore", "stored_chat_routes"]
