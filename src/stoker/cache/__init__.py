"""The KV cache's bookkeeping: which blocks exist, who holds them, what must be copied before a write."""

from stoker.cache.blocks import BlockPool, BlockTable, Copy

__all__ = ["BlockPool", "BlockTable", "Copy"]
