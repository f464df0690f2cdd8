-- Loses nothing: the index can be built again.
-- transactional: false

DROP INDEX CONCURRENTLY app.messages_recorded_at_idx;
