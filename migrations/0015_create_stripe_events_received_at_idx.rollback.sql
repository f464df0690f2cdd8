-- Loses nothing.
-- transactional: false

DROP INDEX CONCURRENTLY app.stripe_events_received_at_idx;
