"""The bus that carries the events of a run."""

from synthia_batch.core.events import Event, EventBus


def test_every_subscriber_gets_every_event_in_order_until_it_unsubscribes() -> None:
    bus, seen = EventBus(), list[tuple[str, Event]]()

    def first(event: Event) -> None:
        seen.append(("first", event))

    def second(event: Event) -> None:
        seen.append(("second", event))

    one, two = Event(), Event()
    bus.subscribe(first)
    bus.subscribe(second)
    bus.publish(one)
    bus.unsubscribe(first)
    bus.publish(two)
    assert seen == [("first", one), ("second", one), ("second", two)]
