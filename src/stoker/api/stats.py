"""What a served model tells of itself: counters that only grow, gauges of the moment; rates are derived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HotPrefix:
    """A path of the prefix cache that was hit often."""

    tokens: int  # from the start of the prompt
    hits: int  # requests that read it
    head_ids: tuple[int, ...]  # its first token ids, to be shown as text
    tail_ids: tuple[int, ...]  # its last token ids


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One model's engine, as it stands between two steps."""

    running: int = 0  # sequences that take part in steps
    waiting: int = 0  # sequences queued or preempted
    blocks: int = 0  # KV blocks in all; free + cached + held = blocks
    blocks_free: int = 0
    blocks_cached: int = 0  # only the prefix cache holds them: evicted when needed
    blocks_held: int = 0  # in a sequence's table
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0  # of requests taken
    generated_tokens: int = 0
    drafted_tokens: int = 0  # guessed, and verified beside a stream's next token
    accepted_tokens: int = 0  # of these, what the model said as well
    drafts: int = 0  # one for each stream and step that verified any
    drafts_by_tokens: tuple[int, ...] = ()  # [i]: drafts of i tokens
    drafts_by_accepted: tuple[int, ...] = ()  # [i]: drafts of which i tokens were accepted
    draft_saved_ms: float = 0.0  # estimated; falls while drafts cost more than they bring
    prefix_queries_tokens: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits_tokens: int = 0  # of these found, in memory or on disk
    disk_hits_tokens: int = 0  # of these read from disk
    disk_blocks: int = 0  # blocks kept on disk
    disk_rejected: int = 0  # blocks on disk that were corrupt or foreign, and were not served
    evictions: int = 0  # blocks that left the prefix cache
    restarts: int = 0  # of the engine's process; the counters above begin anew with it
    hottest: tuple[HotPrefix, ...] = ()
