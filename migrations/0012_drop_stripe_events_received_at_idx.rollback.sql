-- Loses nothing.
-- transactional: false

-- For list_events, newest first.
CREATE INDEX CONCURRENTLY stripe_events_received_at_idx
ON app.stripe_events (received_at, id);
