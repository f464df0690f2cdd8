-- Indexes of a time and an id were taken for lookups by id, and read as a whole.
-- transactional: false

-- For list_events, newest first. Without the id: on an empty table, a plan that looks
-- an event up by its id would take this index instead of the key, and read all of it.
CREATE INDEX CONCURRENTLY stripe_events_received_at_idx
ON app.stripe_events (received_at);
