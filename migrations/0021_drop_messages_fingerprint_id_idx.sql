-- messages_fingerprint_id_id_idx begins with the same column.
-- transactional: false

DROP INDEX CONCURRENTLY app.messages_fingerprint_id_idx;
