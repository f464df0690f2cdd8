-- Indexes of a time and an id were taken for lookups by id, and read as a whole.
-- transactional: false

DROP INDEX CONCURRENTLY app.stripe_events_received_at_idx;
