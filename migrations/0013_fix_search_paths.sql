-- Under search_path = '' PostgreSQL still searches pg_temp first for types: a caller
-- could create a type "date" there, and its check then ran as the owner of the schema.
-- On PostgreSQL 18 a session's TimeZone could redefine the name UTC, and with it
-- the day that a message counts on. A referral could grant any number of credits.

SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION app.add_months(anchor timestamptz, months integer)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    ((anchor AT TIME ZONE interval '0') + make_interval(months => months))
    AT TIME ZONE interval '0';

CREATE OR REPLACE FUNCTION app.count_months(anchor timestamptz, moment timestamptz)
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

CREATE OR REPLACE FUNCTION app.get_quota_period_start(
    anchor timestamptz, reset timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(
    app.get_period_start(
        anchor,
        (reset AT TIME ZONE interval '0' - interval '1 microsecond')
        AT TIME ZONE interval '0'
    ),
    anchor
);

CREATE OR REPLACE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- In key order, so that two writers of several rows never wait for each other.
    INSERT INTO app.usage_daily AS d (
        subject_id, day, messages, input_tokens, cache_creation_input_tokens,
        cache_read_input_tokens, output_tokens, cost, credits
    )
    SELECT
        i.subject_id,
        (i.finished_at AT TIME ZONE interval '0')::date,
        count(*),
        sum(i.input_tokens),
        sum(i.cache_creation_input_tokens),
        sum(i.cache_read_input_tokens),
        sum(i.output_tokens),
        sum(i.cost),
        sum(i.credits)
    FROM inserted AS i
    GROUP BY 1, 2
    ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT usage_daily_pkey DO UPDATE SET
        messages = d.messages + excluded.messages,
        input_tokens = d.input_tokens + excluded.input_tokens,
        cache_creation_input_tokens
            = d.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
        cache_read_input_tokens
            = d.cache_read_input_tokens + excluded.cache_read_input_tokens,
        output_tokens = d.output_tokens + excluded.output_tokens,
        cost = d.cost + excluded.cost,
        credits = d.credits + excluded.credits;
    RETURN NULL;
END;
$$;

DO $$
DECLARE
    function regprocedure;
BEGIN
    FOREACH function IN ARRAY ARRAY[
        'app.get_period_start(timestamptz, timestamptz)',
        'app.get_period_end(timestamptz, timestamptz)',
        'app.set_updated_at()',
        'app.refuse_change()',
        'app.refuse_user_id()',
        'app.create_payload_partitions(date, integer)',
        'app.retire_payload_partition(date)',
        'app.grant_referral_credits()',
        'app.sync_stripe_users(uuid[], boolean)',
        'app.put_stripe_customers(jsonb, text, boolean, boolean, boolean)',
        'app.put_stripe_subscriptions(jsonb, text, boolean, boolean)',
        'app.put_stripe_views(text, jsonb, text, boolean, boolean, boolean)',
        'app.take_stripe_event(
            text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
        )'
    ]::regprocedure[] LOOP
        EXECUTE format(
            $sql$ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp$sql$, function
        );
    END LOOP;
END;
$$;

-- Replaced below.
-- squawk-ignore ban-drop-constraint
ALTER TABLE app.referrals DROP CONSTRAINT referrals_credits_is_amount_check;
ALTER TABLE app.referrals
    ADD CONSTRAINT referrals_credits_is_amount_check
        CHECK (credits BETWEEN 0 AND 1000000) NOT VALID;

COMMENT ON COLUMN app.referrals.credits IS
    'Credits granted to each of the two on completion; at most 1000000, 10000 USD.';

-- Larger referrals that exist must not keep the repair above from being applied: they
-- stay, the check holds for all new rows, and pyapp db check reports it as NOT VALID.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM app.referrals AS r WHERE r.credits > 1000000) THEN
        ALTER TABLE app.referrals
            VALIDATE CONSTRAINT referrals_credits_is_amount_check;
    END IF;
END;
$$;

-- PUBLIC may not call a function that runs as its owner.
REVOKE EXECUTE ON FUNCTION
app.add_usage(), app.grant_referral_credits(), app.refuse_user_id()
FROM public;
