-- Operators ask how much is recorded a minute, and nothing led to the last rows.
-- transactional: false

CREATE INDEX CONCURRENTLY messages_recorded_at_idx ON app.messages
USING brin (recorded_at) WITH (autosummarize = on);
