-- Loses nothing.
-- transactional: false

CREATE INDEX CONCURRENTLY messages_fingerprint_id_idx
ON app.messages (fingerprint_id);
