-- Reports by day, month or payer read the daily sums of a month.
-- transactional: false

-- For list_usage over all payers. Rows are inserted nearly in the order of days, and
-- updates of the current day stay near the end of the table, so that BRIN finds the
-- pages of a month.
CREATE INDEX CONCURRENTLY usage_daily_day_idx ON app.usage_daily USING brin (day);
