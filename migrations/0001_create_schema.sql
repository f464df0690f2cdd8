-- The schema, the arithmetic of quota periods, and the plans.

SET LOCAL lock_timeout = '5s';

CREATE SCHEMA app;

COMMENT ON SCHEMA app IS
    'Metering of paid AI usage: accounts, messages, quota, referrals, Stripe.';

-- Rules for all function bodies, here and in sql/functions:
--
-- - SQL-standard bodies (RETURN, BEGIN ATOMIC) are parsed when the function is created.
--   search_path cannot affect them, and the planner can inline them.
-- - All other bodies look names up when they run, and set search_path to pg_catalog,
--   pg_temp. If pg_temp is not listed, it is searched first for tables and types, and
--   any caller can create both.
-- - UTC is written as interval '0'. PostgreSQL 18 looks a zone's name up among the
--   abbreviations of the session's TimeZone first, and TimeZone 'UTC-14' redefines UTC.
-- - SECURITY DEFINER functions are revoked from PUBLIC, because any caller could use a
--   trigger function on its own table.

CREATE FUNCTION app.add_months(anchor timestamptz, months integer)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    ((anchor AT TIME ZONE interval '0') + make_interval(months => months))
    AT TIME ZONE interval '0';

COMMENT ON FUNCTION app.add_months(timestamptz, integer) IS
    'Adds months to the anchor in UTC; 31 January plus 1 is the last day of February.';

CREATE FUNCTION app.count_months(anchor timestamptz, moment timestamptz)
RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    (date_part('year', moment AT TIME ZONE interval '0')::integer
        - date_part('year', anchor AT TIME ZONE interval '0')::integer) * 12
    + date_part('month', moment AT TIME ZONE interval '0')::integer
    - date_part('month', anchor AT TIME ZONE interval '0')::integer
    - (app.add_months(
        anchor,
        (date_part('year', moment AT TIME ZONE interval '0')::integer
            - date_part('year', anchor AT TIME ZONE interval '0')::integer) * 12
        + date_part('month', moment AT TIME ZONE interval '0')::integer
        - date_part('month', anchor AT TIME ZONE interval '0')::integer
    ) > moment)::integer;

COMMENT ON FUNCTION app.count_months(timestamptz, timestamptz) IS
    'Whole months from the anchor to the moment, in UTC.';

-- PL/pgSQL prevents inlining: quota queries rarely evaluate this arithmetic.
CREATE FUNCTION app.get_period_start(anchor timestamptz, moment timestamptz)
RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN app.add_months(anchor, app.count_months(anchor, moment));
END;
$$;

COMMENT ON FUNCTION app.get_period_start(timestamptz, timestamptz) IS
    'Last period boundary at or before the moment; boundaries are anchor + n months.';

CREATE FUNCTION app.get_quota_period_start(anchor timestamptz, reset timestamptz)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(
    app.get_period_start(
        anchor,
        (reset AT TIME ZONE interval '0' - interval '1 microsecond')
        AT TIME ZONE interval '0'
    ),
    anchor
);

COMMENT ON FUNCTION app.get_quota_period_start(timestamptz, timestamptz) IS
    'Last period boundary before the reset; the anchor if the reset is NULL.';

CREATE FUNCTION app.set_updated_at()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.set_updated_at() IS
    'Trigger: sets updated_at to the start of the transaction.';

CREATE FUNCTION app.refuse_change()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: %',
        TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'restrict_violation',
            SCHEMA = TG_TABLE_SCHEMA,
            TABLE = TG_TABLE_NAME,
            CONSTRAINT = TG_NAME;
END;
$$;

COMMENT ON FUNCTION app.refuse_change() IS
    'Trigger: raises restrict_violation; reports the trigger''s name as constraint.';

CREATE TABLE app.plans (
    id              text NOT NULL,
    stripe_price_id text,
    monthly_credits numeric NOT NULL,

    CONSTRAINT plans_pkey PRIMARY KEY (id),
    CONSTRAINT plans_stripe_price_id_key UNIQUE (stripe_price_id),
    CONSTRAINT plans_id_not_empty_check CHECK (id <> ''),
    CONSTRAINT plans_monthly_credits_is_amount_check
        CHECK (monthly_credits >= 0 AND monthly_credits < 'Infinity')
);

COMMENT ON TABLE app.plans IS
    'Plans. anonymous and free apply without a paid subscription.';
COMMENT ON COLUMN app.plans.stripe_price_id IS
    'Stripe price that buys the plan; NULL if none does. Set by the operator.';
COMMENT ON COLUMN app.plans.monthly_credits IS
    'Credits per month without referral credits; one credit is one US cent of usage.';

INSERT INTO app.plans (id, monthly_credits) VALUES
    ('anonymous', 1000),
    ('free', 2500),
    ('paid', 50000);

CREATE FUNCTION app.get_monthly_credits(plan_id text)
RETURNS numeric LANGUAGE sql STABLE PARALLEL SAFE
RETURN (
    SELECT p.monthly_credits
    FROM app.plans AS p
    WHERE p.id = get_monthly_credits.plan_id
);

COMMENT ON FUNCTION app.get_monthly_credits(text) IS
    'Monthly credits of a plan; NULL for an unknown plan.';
