-- Loses nothing: the index can be built again.
-- transactional: false

DROP INDEX CONCURRENTLY app.messages_fingerprint_id_id_idx;
