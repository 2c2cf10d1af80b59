"""The KV cache's bookkeeping: which blocks exist, who holds them, which prefixes are worth keeping."""

from stoker.cache.blocks import BlockPool, BlockTable, Copy
from stoker.cache.radix import Match, RadixTree
from stoker.cache.tiers import BlockStore, BlockTier

__all__ = ["BlockPool", "BlockStore", "BlockTable", "BlockTier", "Copy", "Match", "RadixTree"]
