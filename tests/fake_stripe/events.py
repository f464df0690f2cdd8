"""The endpoint /v1/events: events of 30 days, the newest first."""

from datetime import UTC, datetime
from fnmatch import fnmatchcase
from urllib.parse import quote

from . import shapes
from .call import Call
from .errors import invalid, missing
from .model import Event
from .params import Page, read_page
from .shapes import Json
from .world import World


def retrieve(call: Call, event_id: str) -> str:
    event = call.world.events.get(event_id, livemode=call.livemode)
    if event.created < call.world.kept_events_since():
        raise missing("event", event_id)
    return shapes.event(event)


def list_page(call: Call) -> str:
    world, params = call.world, call.params
    ask, kind = read_page(params), params.text("type")
    kinds = params.texts("types")
    delivered = params.boolean("delivery_success")
    params.done()
    if kind and kinds:
        raise invalid("types", "You may pass either type or types, but not both")
    if len(kinds) > 20:
        raise invalid("types", "You may pass up to 20 types")
    kinds = [kind] if kind else kinds
    oldest = world.kept_events_since()
    since = oldest if ask.since is None else max(ask.since, oldest)
    for param in ("starting_after", "ending_before"):
        if (cursor := getattr(ask, param)) is not None:
            event = world.events.get(cursor, livemode=call.livemode, param=param)
            if event.created < oldest:
                raise missing("event", cursor, param)

    def keep(event: Event) -> bool:
        return (
            event.livemode == call.livemode
            # Those of other accounts are only delivered.
            and event.account is None
            and event.context is None
            and delivered in (None, not event.undelivered)
            and (not kinds or any(fnmatchcase(event.type, k) for k in kinds))
        )

    ask = Page(ask.limit, ask.starting_after, ask.ending_before, since, ask.before)
    events, more = world.events.page(ask, keep)
    head = f'{{"object":"list","url":"/v1/events","has_more":{str(more).lower()}'
    return f'{head},"data":[{",".join(map(shapes.event, events))}]}}'


def thin_event(world: World, event_type: str, object_id: str) -> Json:
    """Return the notification of an event destination that sends no snapshots."""
    found = (c.find(object_id) for c in (world.customers, world.subscriptions))
    record = next((r for r in found if r is not None), None)
    if record is None:
        raise missing("object", object_id)
    kind = world.render(record)["object"]
    moment = datetime.fromtimestamp(world.now, UTC)
    return {
        "id": world.new_id("evt_test", 40),
        "object": "v2.core.event",
        "created": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "livemode": record.livemode,
        "related_object": {
            "id": object_id,
            "type": kind,
            "url": f"/v1/{kind}s/{quote(object_id, safe='')}",
        },
        "type": event_type,
    }
