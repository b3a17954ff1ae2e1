"""Kafka topics of the platform."""

EVENTS = "events"
DEAD_LETTER = "events.dead_letter"
ITEMS = "items"
USERS = "users"
IMPRESSIONS = "impressions"

COMPACTED = (ITEMS, USERS)
ALL = (EVENTS, DEAD_LETTER, ITEMS, USERS, IMPRESSIONS)
