-- Reports over all payers read the messages of a month.
-- transactional: false

-- For list_usage over all payers. Rows are inserted nearly in the order of finished_at,
-- so that BRIN finds the pages of a month. Small ranges, because a message that is
-- recorded late widens its range.
CREATE INDEX CONCURRENTLY messages_finished_at_idx ON app.messages
USING brin (finished_at) WITH (pages_per_range = 32);
