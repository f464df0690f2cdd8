-- Loses the plans and the Stripe prices that buy them.

SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.get_monthly_credits(text);
DROP TABLE app.plans;
DROP FUNCTION app.get_quota_period_start(timestamptz, timestamptz);
DROP FUNCTION app.get_period_start(timestamptz, timestamptz);
DROP FUNCTION app.count_months(timestamptz, timestamptz);
DROP FUNCTION app.add_months(timestamptz, integer);
DROP FUNCTION app.refuse_change();
DROP FUNCTION app.set_updated_at();
DROP SCHEMA app;
