-- Loses nothing.
-- transactional: false

DROP INDEX CONCURRENTLY app.messages_finished_at_idx;
