"""Events of a run: typed values that one part publishes and any number of subscribers get."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


class Event:
    """Something that happened in a run."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent(Event):
    """An event that is kept in events.jsonl, as its `kind` and its `fields`."""

    kind: ClassVar[str]

    @property
    def fields(self) -> dict[str, Any]:
        """The event's fields as JSON-able values, in the order of the log."""
        return dataclasses.asdict(self)


Subscriber = Callable[[Event], None]


class EventBus:
    """Passes every event to every subscriber, in the order in which they subscribed."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every event from now on."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop calling `subscriber`."""
        self._subscribers.remove(subscriber)

    def publish(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber(event)


def ignore_event(event: Event) -> None:
    """Do nothing: for callers that need no events."""
