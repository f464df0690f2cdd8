-- Loses nothing.

SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.repair_referral_totals(uuid);
DROP VIEW app.referral_drift;
DROP FUNCTION app.repair_usage_day(uuid, date);
DROP FUNCTION app.sum_usage_day(uuid, date);
DROP VIEW app.usage_drift;

CREATE OR REPLACE TRIGGER usage_daily_kept_by_trigger
BEFORE INSERT OR UPDATE OR DELETE ON app.usage_daily
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');
