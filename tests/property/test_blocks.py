"""The block pool against a dictionary: whatever is opened, extended, forked and closed, in any order."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from stoker.api.errors import CapacityError
from stoker.cache import BlockPool, BlockTable
from stoker.kernels.program import BLOCK_TOKENS


class PoolAndDictionary(RuleBasedStateMachine):
    """Blocks hold what was written to them; the oracle is each table's own list of written values.

    Every write puts a number that was never used before, so a block that is shared when it should have been
    copied, or handed out twice, shows as a wrong value in some table.
    """

    tables = Bundle("tables")

    @initialize(num_blocks=st.integers(1, 24))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.storage = {block: [0] * BLOCK_TOKENS for block in range(num_blocks)}
        self.written: dict[BlockTable, list[int]] = {}
        self.next_value = 1

    @rule(target=tables)
    def open(self) -> BlockTable:
        table = self.pool.open_table()
        self.written[table] = []
        return table

    @rule(table=tables, tokens=st.integers(1, 40))
    def append(self, table: BlockTable, tokens: int) -> None:
        if table.closed:
            return
        start = len(self.written[table])
        needed, free = table.blocks_needed(start, start + tokens), self.pool.free
        before = table.block_ids
        if needed > free:
            try:
                table.extend(start, start + tokens)
            except CapacityError:
                assert table.block_ids == before
                assert self.pool.free == free
                return
            raise AssertionError("extended beyond the pool")
        assert not needed or not table.is_writable(start, start + tokens)
        for source, destination in table.extend(start, start + tokens):
            self.storage[destination] = list(self.storage[source])
        assert self.pool.free == free - needed
        assert table.is_writable(start, start + tokens)
        for position in range(start, start + tokens):
            block = table.block_ids[position // BLOCK_TOKENS]
            self.storage[block][position % BLOCK_TOKENS] = self.next_value
            self.written[table].append(self.next_value)
            self.next_value += 1

    @rule(target=tables, table=tables, share=st.floats(0, 1))
    def fork(self, table: BlockTable, share: float) -> BlockTable:
        if table.closed:
            return table
        tokens = int(len(self.written[table]) * share)
        free = self.pool.free
        forked = table.fork(tokens)
        assert self.pool.free == free
        self.written[forked] = self.written[table][:tokens]
        return forked

    @rule(table=consumes(tables), twice=st.booleans())
    def close(self, table: BlockTable, twice: bool) -> None:
        table.close()
        if twice:
            table.close()
        self.written.pop(table, None)

    @rule(table=consumes(tables))
    def lose(self, table: BlockTable) -> None:
        """A table nobody refers to gives its blocks back by itself."""
        if table not in self.written:
            return
        others = Counter(block for other in self.written if other is not table for block in other.block_ids)
        mine = [block for block in table.block_ids if not others[block]]
        # Hypothesis keeps the object alive, so what the garbage collector would call is called by hand.
        free = self.pool.free
        table._finalizer()
        assert self.pool.free == free + len(mine)
        del self.written[table]

    @invariant()
    def reads_back_what_was_written(self) -> None:
        for table, values in self.written.items():
            slots = [slot for block in table.block_ids for slot in self.storage[block]]
            assert slots[: len(values)] == values

    @invariant()
    def conserves_blocks(self) -> None:
        self.pool.check()
        held = {block for table in self.written for block in table.block_ids}
        assert self.pool.held == len(held)
        assert self.pool.free + len(held) == self.pool.num_blocks
        assert self.pool.touched <= self.pool.num_blocks


TestPoolAndDictionary = PoolAndDictionary.TestCase
TestPoolAndDictionary.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
