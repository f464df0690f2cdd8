-- Loses nothing.
-- transactional: false

DROP INDEX CONCURRENTLY app.usage_daily_day_idx;
