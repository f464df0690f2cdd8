"""The endpoint /v1/events: events of 30 days, the newest first."""

from fnmatch import fnmatchcase

from . import shapes
from .call import Call
from .errors import invalid, missing
from .model import Event
from .params import Page, read_page


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
            and delivered in (None, not event.undelivered)
            and (not kinds or any(fnmatchcase(event.type, k) for k in kinds))
        )

    ask = Page(ask.limit, ask.starting_after, ask.ending_before, since, ask.before)
    events, more = world.events.page(ask, keep)
    head = f'{{"object":"list","url":"/v1/events","has_more":{str(more).lower()}'
    return f'{head},"data":[{",".join(map(shapes.event, events))}]}}'
