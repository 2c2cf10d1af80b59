"""What a response goes on from: the items of the responses before it, and items it refers to by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from stoker.server.errors import refuse
from stoker.server.responses.items import Item, response_of_item
from stoker.server.responses.records import Records

if TYPE_CHECKING:
    from stoker.state.responses import StoredResponse

MOST_REFERENCED = 256  # responses that one input takes items from; each is looked up
_GOES_ON = ("completed", "incomplete")


async def earlier_items(records: Records, owner: str, previous_id: str | None) -> list[Item]:
    """The items of a response and of all that it goes on from, oldest first: their inputs and outputs.

    Raises `Refusal` for a response that is not there, has not ended well, or goes on from a deleted one.
    """
    if previous_id is None:
        return []
    where = "previous_response_id"
    if records.answering(owner, previous_id) is not None:
        raise refuse(where, f"the response {previous_id!r:.100} is still being answered", code="not_finished")
    chain = await records.chain(owner, previous_id)
    if not chain:
        raise refuse(
            where, f"there is no response {previous_id!r:.100} here", code="previous_response_not_found"
        )
    if chain[-1].previous_id is not None:
        raise refuse(
            where,
            f"the response {previous_id!r:.100} goes on from {chain[-1].previous_id}, which was deleted",
            code="previous_response_not_found",
        )
    items: list[Item] = []
    for response in reversed(chain):
        if response.status not in _GOES_ON:
            raise refuse(
                where,
                f"the response {response.id} is {response.status}; "
                "allowed: to go on from one that is completed or incomplete",
                code="not_finished",
            )
        items += items_of_response(response)
    return items


def items_of_response(response: StoredResponse) -> list[Item]:
    """Its own input items, then its output."""
    items: list[Item] = msgspec.json.decode(response.items)
    items += msgspec.json.decode(response.body)["output"]
    return items


async def with_references(
    records: Records, owner: str, items: Sequence[Item], before: Sequence[Item]
) -> list[Item]:
    """`items` with what they refer to in place of references. Raises `Refusal` for one that leads nowhere."""
    known = {item["id"]: item for item in before}
    looked_up: set[str] = set()
    found: list[Item] = []
    for number, item in enumerate(items):
        if item["type"] != "item_reference":
            found.append(item)
            continue
        reference = item["id"]
        if reference not in known:
            response_id = response_of_item(reference)
            if response_id is not None and response_id not in looked_up:
                looked_up.add(response_id)
                if len(looked_up) > MOST_REFERENCED:
                    raise refuse("input", f"input refers to more than {MOST_REFERENCED} responses")
                stored = await records.find(owner, response_id)
                known |= {} if stored is None else {i["id"]: i for i in items_of_response(stored)}
        if reference not in known:
            where = f"input[{number}].id"
            raise refuse(
                where, f"{where} is {reference!r:.100}, which is no item here", code="item_not_found"
            )
        found.append(known[reference])
    return found
