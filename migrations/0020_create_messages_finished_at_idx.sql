-- Reports over all payers read the messages of a month.
-- transactional: false

-- For list_usage over all payers. Rows are inserted nearly in the order of finished_at,
-- so that BRIN finds the pages of a month. Small ranges and minmax_multi, because a few
-- messages that are recorded late or by a wrong clock would widen a plain range.
CREATE INDEX CONCURRENTLY messages_finished_at_idx ON app.messages
USING brin (finished_at timestamptz_minmax_multi_ops) WITH (pages_per_range = 32);
