-- A retry that names its user after sign-in was billed as a second message.
-- transactional: false

CREATE UNIQUE INDEX CONCURRENTLY messages_fingerprint_id_id_idx
ON app.messages (fingerprint_id, id)
WHERE fingerprint_id IS NOT NULL;
