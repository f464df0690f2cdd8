-- A database with migrations 0001 to 0021 of the history before the squash, and a few
-- rows in each table, as pg_dump writes it.

--
-- PostgreSQL database dump
--

-- Dumped from database version 18.6
-- Dumped by pg_dump version 18.6

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

CREATE SCHEMA app;

COMMENT ON SCHEMA app IS 'Metering of paid AI usage: accounts, messages, quota, referrals, Stripe.';

CREATE FUNCTION app.add_months(anchor timestamp with time zone, months integer) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (((anchor AT TIME ZONE '00:00:00'::interval) + make_interval(months => months)) AT TIME ZONE '00:00:00'::interval);

COMMENT ON FUNCTION app.add_months(anchor timestamp with time zone, months integer) IS 'The anchor plus whole months in UTC; 31 January plus 1 is the last of February.';

CREATE FUNCTION app.add_usage() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

COMMENT ON FUNCTION app.add_usage() IS 'Trigger: adds a statement''s new messages to usage_daily.';

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE app.plans (
    id text NOT NULL,
    stripe_price_id text,
    monthly_credits numeric NOT NULL,
    CONSTRAINT plans_id_not_empty_check CHECK ((id <> ''::text)),
    CONSTRAINT plans_monthly_credits_is_amount_check CHECK (((monthly_credits >= (0)::numeric) AND (monthly_credits < 'Infinity'::numeric)))
);

COMMENT ON TABLE app.plans IS 'What a price buys; anonymous and free are the plans of those who pay nothing.';

COMMENT ON COLUMN app.plans.stripe_price_id IS 'Stripe''s price that buys the plan; NULL where none does. Set by the operator.';

COMMENT ON COLUMN app.plans.monthly_credits IS 'Credits a month, before referral credits; one credit is one US cent of usage.';

CREATE FUNCTION app.get_monthly_credits(plan_id text) RETURNS numeric
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (SELECT p.monthly_credits FROM app.plans p WHERE (p.id = get_monthly_credits.plan_id));

COMMENT ON FUNCTION app.get_monthly_credits(plan_id text) IS 'The credits of a plan by its id; NULL for an unknown plan.';

CREATE FUNCTION app.get_period_start(anchor timestamp with time zone, moment timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN app.add_months(anchor, app.count_months(anchor, moment));
END;
$$;

COMMENT ON FUNCTION app.get_period_start(anchor timestamp with time zone, moment timestamp with time zone) IS 'The last boundary at or before the moment; boundaries are the anchor plus months.';

CREATE FUNCTION app.get_quota_period_start(anchor timestamp with time zone, reset timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN COALESCE(app.get_period_start(anchor, (((reset AT TIME ZONE '00:00:00'::interval) - '00:00:00.000001'::interval) AT TIME ZONE '00:00:00'::interval)), anchor);

COMMENT ON FUNCTION app.get_quota_period_start(anchor timestamp with time zone, reset timestamp with time zone) IS 'The last boundary before the reset; the anchor itself where nothing resets.';

CREATE FUNCTION app.is_active_status(status text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN COALESCE((status = ANY (ARRAY['active'::text, 'trialing'::text, 'past_due'::text])), false);

COMMENT ON FUNCTION app.is_active_status(status text) IS 'Whether a subscription in this state entitles; unknown states and NULL do not.';

CREATE TABLE app.users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    email text,
    name text,
    email_verified_at timestamp with time zone,
    image_url text,
    base_quota numeric DEFAULT app.get_monthly_credits('free'::text) NOT NULL,
    referral_credits numeric DEFAULT 0 NOT NULL,
    quota numeric GENERATED ALWAYS AS ((base_quota + referral_credits)) STORED NOT NULL,
    quota_anchor timestamp with time zone DEFAULT now() NOT NULL,
    next_quota_reset timestamp with time zone DEFAULT app.add_months(now(), 1),
    quota_period_start timestamp with time zone GENERATED ALWAYS AS (app.get_quota_period_start(quota_anchor, next_quota_reset)) STORED NOT NULL,
    referral_code text DEFAULT ('ref-'::text || gen_random_uuid()) NOT NULL,
    referral_limit integer DEFAULT 5 NOT NULL,
    referral_count integer DEFAULT 0 NOT NULL,
    stripe_customer_id text,
    stripe_subscription_id text,
    stripe_price_id text,
    subscription_status text,
    subscription_active boolean GENERATED ALWAYS AS (app.is_active_status(subscription_status)) STORED NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    anonymized_at timestamp with time zone,
    CONSTRAINT users_anonymized_is_nobody_check CHECK (
CASE
    WHEN (anonymized_at IS NULL) THEN (email IS NOT NULL)
    ELSE (num_nonnulls(email, name, email_verified_at, image_url) = 0)
END),
    CONSTRAINT users_base_quota_is_amount_check CHECK (((base_quota >= (0)::numeric) AND (base_quota < 'Infinity'::numeric))),
    CONSTRAINT users_email_shape_check CHECK (((email ~ '^[^@\s]+@[^@\s]+$'::text) AND (length(email) <= 320))),
    CONSTRAINT users_referral_code_shape_check CHECK ((referral_code ~ '^ref-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'::text)),
    CONSTRAINT users_referral_count_within_limit_check CHECK (((referral_count >= 0) AND (referral_count <= referral_limit))),
    CONSTRAINT users_referral_credits_is_amount_check CHECK (((referral_credits >= (0)::numeric) AND (referral_credits < 'Infinity'::numeric))),
    CONSTRAINT users_stripe_customer_id_shape_check CHECK ((stripe_customer_id ~ '^cus_.'::text)),
    CONSTRAINT users_stripe_subscription_id_shape_check CHECK ((stripe_subscription_id ~ '^sub_.'::text)),
    CONSTRAINT users_subscription_has_status_check CHECK (((stripe_subscription_id IS NULL) = (subscription_status IS NULL)))
);

COMMENT ON TABLE app.users IS 'Accounts. The stripe_ and subscription_ columns are written by the sync only.';

COMMENT ON COLUMN app.users.email IS 'As the user wrote it, unique regardless of case; NULL once anonymized.';

COMMENT ON COLUMN app.users.name IS 'For display; NULL if never given or anonymized.';

COMMENT ON COLUMN app.users.email_verified_at IS 'When the user proved to own the e-mail; NULL until then and once anonymized.';

COMMENT ON COLUMN app.users.image_url IS 'Avatar; NULL if there is none or once anonymized.';

COMMENT ON COLUMN app.users.base_quota IS 'Credits a period from the plan; written when the plan changes.';

COMMENT ON COLUMN app.users.referral_credits IS 'Credits a period earned by completed referrals; written by their trigger.';

COMMENT ON COLUMN app.users.quota IS 'Credits a period in all: base_quota and referral_credits.';

COMMENT ON COLUMN app.users.quota_anchor IS 'Periods begin at the anchor plus whole months in UTC; Stripe''s billing anchor.';

COMMENT ON COLUMN app.users.next_quota_reset IS 'When the period ends; once lapsed, the next boundary; NULL if it never resets.';

COMMENT ON COLUMN app.users.quota_period_start IS 'The boundary before next_quota_reset; the anchor where nothing resets.';

COMMENT ON COLUMN app.users.referral_code IS 'What the user gives to those he refers: ref- and a UUID.';

COMMENT ON COLUMN app.users.referral_limit IS 'How many completed referrals the user may have.';

COMMENT ON COLUMN app.users.referral_count IS 'Completed referrals by this user; written by the trigger of referrals.';

COMMENT ON COLUMN app.users.stripe_customer_id IS 'cus_...; NULL until a customer is linked.';

COMMENT ON COLUMN app.users.stripe_subscription_id IS 'sub_... of the best subscription: active first, then latest end; NULL if none.';

COMMENT ON COLUMN app.users.stripe_price_id IS 'Price of the best subscription; NULL if there is none or it has no price.';

COMMENT ON COLUMN app.users.subscription_status IS 'Stripe''s word for the best subscription; NULL if there is none.';

COMMENT ON COLUMN app.users.subscription_active IS 'Whether the status entitles: active, trialing or past_due.';

COMMENT ON COLUMN app.users.created_at IS 'When Stripe''s customer was created; now() until there is one.';

COMMENT ON COLUMN app.users.anonymized_at IS 'When the person was erased and the bill kept; NULL while the account lives.';

CREATE FUNCTION app.anonymize_user(user_id uuid) RETURNS SETOF app.users
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    detached text;
BEGIN
    -- An older snapshot would not show the payloads that were committed after it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'anonymize_user needs a transaction of isolation READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- The strongest lock waits for what refers to the user and is not yet committed;
    -- each statement below then sees it.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = anonymize_user.user_id
    FOR UPDATE;
    -- The id may be that of a fingerprint, which pays for messages, too.
    IF NOT FOUND THEN
        RETURN;
    END IF;

    DELETE FROM app.sessions AS s WHERE s.user_id = anonymize_user.user_id;

    DELETE FROM app.referrals AS r
    WHERE (
            r.referrer_id = anonymize_user.user_id
            OR r.referred_id = anonymize_user.user_id
        )
        AND r.status = 'pending';

    -- message_payloads first: its lock keeps every partition attached until the end of
    -- this transaction, and rows move between the tables only under a lock on the user.
    DELETE FROM app.message_payloads AS p
    WHERE p.subject_id = anonymize_user.user_id;

    FOREACH detached IN ARRAY ARRAY['waiting_payloads', 'retired_payloads'] LOOP
        CONTINUE WHEN to_regclass('app.' || detached) IS NULL;
        BEGIN
            EXECUTE format('DELETE FROM app.%I WHERE subject_id = $1', detached)
            USING anonymize_user.user_id;
        EXCEPTION
            -- Dropped while this waited for its lock, with all that was left in it.
            WHEN undefined_table THEN NULL;
        END;
    END LOOP;

    RETURN QUERY
    UPDATE app.users AS u
    SET
        email = NULL,
        name = NULL,
        email_verified_at = NULL,
        image_url = NULL,
        anonymized_at = COALESCE(u.anonymized_at, now())
    WHERE u.id = anonymize_user.user_id
    RETURNING u.*;
END;
$_$;

COMMENT ON FUNCTION app.anonymize_user(user_id uuid) IS 'Erases the person and every payload of the user, keeps the bill; returns the row.';

CREATE FUNCTION app.cancel_referral(referred uuid) RETURNS TABLE(referrer_id uuid, referred_id uuid, status text, credits numeric, created_at timestamp with time zone, completed_at timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = cancel_referral.referred
    FOR NO KEY UPDATE;
    RETURN QUERY
    DELETE FROM app.referrals AS r
    WHERE r.referred_id = cancel_referral.referred
        AND r.status = 'pending'
    RETURNING
        r.referrer_id,
        r.referred_id,
        r.status,
        r.credits,
        r.created_at,
        r.completed_at;
END;
$$;

COMMENT ON FUNCTION app.cancel_referral(referred uuid) IS 'Deletes the pending referral of a user and returns it; no row if none is pending.';

CREATE FUNCTION app.count_months(anchor timestamp with time zone, moment timestamp with time zone) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((((((date_part('year'::text, (moment AT TIME ZONE '00:00:00'::interval)))::integer - (date_part('year'::text, (anchor AT TIME ZONE '00:00:00'::interval)))::integer) * 12) + (date_part('month'::text, (moment AT TIME ZONE '00:00:00'::interval)))::integer) - (date_part('month'::text, (anchor AT TIME ZONE '00:00:00'::interval)))::integer) - ((app.add_months(anchor, (((((date_part('year'::text, (moment AT TIME ZONE '00:00:00'::interval)))::integer - (date_part('year'::text, (anchor AT TIME ZONE '00:00:00'::interval)))::integer) * 12) + (date_part('month'::text, (moment AT TIME ZONE '00:00:00'::interval)))::integer) - (date_part('month'::text, (anchor AT TIME ZONE '00:00:00'::interval)))::integer)) > moment))::integer);

COMMENT ON FUNCTION app.count_months(anchor timestamp with time zone, moment timestamp with time zone) IS 'The greatest n for which the anchor plus n months is not after the moment.';

CREATE FUNCTION app.create_payload_partitions(first_month date, months integer) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    month date;
    lower_bound text;
    upper_bound text;
    partition text;
    created integer := 0;
    this_month timestamp := date_trunc('month', now() AT TIME ZONE interval '0');
BEGIN
    -- A query that names no time locks every partition and plans for it.
    IF (
        CASE
            WHEN months BETWEEN 0 AND 120
                THEN first_month >= this_month - interval '120 months'
                    AND first_month < this_month + make_interval(months => 121 - months)
        END
    ) IS NOT TRUE THEN
        RAISE EXCEPTION
            'create_payload_partitions(%, %) is refused: at most 120 months, from 120'
            ' months ago to 120 months ahead', first_month, months
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    FOR month IN
        SELECT (date_trunc('month', first_month::timestamp)
            + make_interval(months => n))::date
        FROM generate_series(0, months - 1) AS n
    LOOP
        partition := 'message_payloads_' || to_char(month, 'YYYYMM');
        CONTINUE WHEN to_regclass('app.' || partition) IS NOT NULL;

        lower_bound := month::text || ' 00:00:00+00';
        upper_bound := (month + interval '1 month')::date::text || ' 00:00:00+00';
        -- A writer who has chosen the default partition before the attachment and
        -- reaches it after would be refused: so nobody may be between the two. The
        -- order is that of the writers, who would deadlock with another.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE ONLY app.message_payloads IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE app.message_payloads_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'CREATE TABLE app.%I (LIKE app.message_payloads INCLUDING ALL)', partition
        );
        -- What waits for its month in the default partition moves there.
        EXECUTE format(
            'WITH moved AS (
                DELETE FROM app.message_payloads_default AS d
                WHERE d.finished_at >= %L AND d.finished_at < %L
                RETURNING d.subject_id, d.message_id, d.finished_at,
                    d.request, d.response
            )
            INSERT INTO app.%I (
                subject_id, message_id, finished_at, request, response
            )
            SELECT m.subject_id, m.message_id, m.finished_at, m.request, m.response
            FROM moved AS m',
            lower_bound, upper_bound, partition
        );
        EXECUTE format(
            'ALTER TABLE app.message_payloads ATTACH PARTITION app.%I
            FOR VALUES FROM (%L) TO (%L)',
            partition, lower_bound, upper_bound
        );
        created := created + 1;
    END LOOP;
    RETURN created;
END;
$$;

COMMENT ON FUNCTION app.create_payload_partitions(first_month date, months integer) IS 'Makes the partitions of so many months from the first; returns how many were new.';

CREATE FUNCTION app.delete_expired_sessions(row_limit bigint) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN QUERY
    WITH expired AS (
        SELECT s.token_hash
        FROM app.sessions AS s
        WHERE s.expires_at <= statement_timestamp()
        ORDER BY s.expires_at
        LIMIT row_limit
        FOR UPDATE SKIP LOCKED
    )

    DELETE FROM app.sessions AS s
    USING expired AS e
    WHERE s.token_hash = e.token_hash
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_expired_sessions(row_limit bigint) IS 'Deletes at most row_limit expired sessions, oldest first; one row for each.';

CREATE FUNCTION app.delete_session(token_hash bytea) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN QUERY
    DELETE FROM app.sessions AS s
    WHERE s.token_hash = delete_session.token_hash
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_session(token_hash bytea) IS 'Deletes one session by the hash of its token; returns its user, or no row.';

CREATE FUNCTION app.delete_user_sessions(user_id uuid) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN QUERY
    DELETE FROM app.sessions AS s
    WHERE s.user_id = delete_user_sessions.user_id
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_user_sessions(user_id uuid) IS 'Deletes all sessions of a user; returns one row for each.';

CREATE FUNCTION app.end_unproved_sessions() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    -- The snapshot of another level would hide a session that is committed during the
    -- wait below.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the first proof of an e-mail address needs READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- The update does not conflict with the lock that create_session takes; this lock
    -- does. So a session that is being created is committed before the deletion.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = NEW.id
    FOR UPDATE;
    DELETE FROM app.sessions AS s
    WHERE s.user_id = NEW.id;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.end_unproved_sessions() IS 'Trigger: deletes the sessions of a user whose address is proved the first time.';

CREATE FUNCTION app.get_period_end(anchor timestamp with time zone, moment timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN app.add_months(anchor, app.count_months(anchor, moment) + 1);
END;
$$;

COMMENT ON FUNCTION app.get_period_end(anchor timestamp with time zone, moment timestamp with time zone) IS 'The first boundary after the moment; boundaries are the anchor plus months.';

CREATE FUNCTION app.get_next_reset(anchor timestamp with time zone, reset timestamp with time zone, moment timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN (reset > moment) THEN reset WHEN (reset IS NOT NULL) THEN app.get_period_end(anchor, moment) ELSE NULL::timestamp with time zone END;

COMMENT ON FUNCTION app.get_next_reset(anchor timestamp with time zone, reset timestamp with time zone, moment timestamp with time zone) IS 'The reset while it is ahead of the moment, else the next boundary; NULL if none.';

CREATE FUNCTION app.get_start_date(anchor timestamp with time zone, reset timestamp with time zone, moment timestamp with time zone, known_start timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN ((reset > moment) AND (known_start <= moment)) THEN known_start WHEN (reset IS NULL) THEN anchor ELSE app.get_period_start(anchor, moment) END;

COMMENT ON FUNCTION app.get_start_date(anchor timestamp with time zone, reset timestamp with time zone, moment timestamp with time zone, known_start timestamp with time zone) IS 'The start of the period at the moment: the one known, where it still holds.';

CREATE TABLE app.messages (
    subject_id uuid NOT NULL,
    id uuid NOT NULL,
    user_id uuid,
    fingerprint_id uuid,
    finished_at timestamp with time zone NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    total_tokens bigint GENERATED ALWAYS AS (((((input_tokens)::bigint + cache_creation_input_tokens) + cache_read_input_tokens) + output_tokens)) STORED NOT NULL,
    input_tokens integer NOT NULL,
    cache_creation_input_tokens integer NOT NULL,
    cache_read_input_tokens integer NOT NULL,
    output_tokens integer NOT NULL,
    latency_ms integer,
    model text NOT NULL,
    client_id text,
    client_request_id text,
    cost numeric NOT NULL,
    credits numeric NOT NULL,
    CONSTRAINT messages_client_ids_length_check CHECK (((length(client_id) <= 255) AND (length(client_request_id) <= 255))),
    CONSTRAINT messages_cost_is_amount_check CHECK (((cost >= (0)::numeric) AND (cost < 'Infinity'::numeric))),
    CONSTRAINT messages_credits_is_amount_check CHECK (((credits >= (0)::numeric) AND (credits < 'Infinity'::numeric))),
    CONSTRAINT messages_finished_at_is_finite_check CHECK (isfinite(finished_at)),
    CONSTRAINT messages_finished_at_not_ahead_check CHECK (((finished_at AT TIME ZONE '00:00:00'::interval) <= ((recorded_at AT TIME ZONE '00:00:00'::interval) + '24:00:00'::interval))),
    CONSTRAINT messages_latency_not_negative_check CHECK ((latency_ms >= 0)),
    CONSTRAINT messages_model_not_empty_check CHECK ((model <> ''::text)),
    CONSTRAINT messages_subject_is_payer_check CHECK ((NOT (subject_id IS DISTINCT FROM COALESCE(user_id, fingerprint_id)))),
    CONSTRAINT messages_tokens_not_negative_check CHECK ((LEAST(input_tokens, cache_creation_input_tokens, cache_read_input_tokens, output_tokens) >= 0))
)
WITH (autovacuum_vacuum_insert_scale_factor='0.02');

COMMENT ON TABLE app.messages IS 'One row for each call to a model, append-only; the bill is their sum.';

COMMENT ON COLUMN app.messages.subject_id IS 'Who pays: the user, else the fingerprint. A plain column, the key to shard by.';

COMMENT ON COLUMN app.messages.id IS 'The caller''s idempotency key, unique for its payer.';

COMMENT ON COLUMN app.messages.user_id IS 'The user; NULL when anonymous.';

COMMENT ON COLUMN app.messages.fingerprint_id IS 'The device; NULL if it is not known.';

COMMENT ON COLUMN app.messages.finished_at IS 'When the model had answered; the period and the prices go by this time.';

COMMENT ON COLUMN app.messages.recorded_at IS 'When the row was written; finished_at is at most 24 hours after it.';

COMMENT ON COLUMN app.messages.total_tokens IS 'Sum of the four disjoint token counts.';

COMMENT ON COLUMN app.messages.input_tokens IS 'Tokens read at the full price: neither written to nor read from the cache.';

COMMENT ON COLUMN app.messages.cache_creation_input_tokens IS 'Input tokens written to the cache.';

COMMENT ON COLUMN app.messages.cache_read_input_tokens IS 'Input tokens read from the cache.';

COMMENT ON COLUMN app.messages.output_tokens IS 'Tokens the model wrote, reasoning included.';

COMMENT ON COLUMN app.messages.latency_ms IS 'Milliseconds from request to the last byte; NULL if it was not measured.';

COMMENT ON COLUMN app.messages.model IS 'The model as its provider names it.';

COMMENT ON COLUMN app.messages.client_id IS 'The client run that asked, such as one session of a tool; NULL if not given.';

COMMENT ON COLUMN app.messages.client_request_id IS 'The client''s own request, which may take several calls; NULL if not given.';

COMMENT ON COLUMN app.messages.cost IS 'What the call cost, in US dollars.';

COMMENT ON COLUMN app.messages.credits IS 'What the call is billed, in credits.';

CREATE TABLE app.usage_daily (
    subject_id uuid NOT NULL,
    day date NOT NULL,
    messages bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cache_creation_input_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    total_tokens bigint GENERATED ALWAYS AS ((((input_tokens + cache_creation_input_tokens) + cache_read_input_tokens) + output_tokens)) STORED NOT NULL,
    cost numeric NOT NULL,
    credits numeric NOT NULL,
    CONSTRAINT usage_daily_cost_is_amount_check CHECK (((cost >= (0)::numeric) AND (cost < 'Infinity'::numeric))),
    CONSTRAINT usage_daily_credits_is_amount_check CHECK (((credits >= (0)::numeric) AND (credits < 'Infinity'::numeric))),
    CONSTRAINT usage_daily_messages_positive_check CHECK ((messages > 0))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02');

COMMENT ON TABLE app.usage_daily IS 'Sums of messages by payer and UTC day, kept by their trigger in the same commit.';

COMMENT ON COLUMN app.usage_daily.subject_id IS 'Who pays: a user or a fingerprint.';

COMMENT ON COLUMN app.usage_daily.day IS 'UTC day of the messages'' finished_at.';

COMMENT ON COLUMN app.usage_daily.messages IS 'How many messages.';

COMMENT ON COLUMN app.usage_daily.input_tokens IS 'Their tokens read at the full price.';

COMMENT ON COLUMN app.usage_daily.cache_creation_input_tokens IS 'Their input tokens written to the cache.';

COMMENT ON COLUMN app.usage_daily.cache_read_input_tokens IS 'Their input tokens read from the cache.';

COMMENT ON COLUMN app.usage_daily.output_tokens IS 'Their tokens written by the model.';

COMMENT ON COLUMN app.usage_daily.total_tokens IS 'Sum of the four token counts.';

COMMENT ON COLUMN app.usage_daily.cost IS 'Their cost, in US dollars.';

COMMENT ON COLUMN app.usage_daily.credits IS 'Their bill, in credits.';

CREATE FUNCTION app.sum_credits(subject uuid, period_start timestamp with time zone, period_end timestamp with time zone) RETURNS TABLE(credits_used numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT COALESCE(sum(
         CASE
             WHEN ((d.day >= (sum_credits.period_start AT TIME ZONE '00:00:00'::interval)) AND ((d.day + 1) <= (sum_credits.period_end AT TIME ZONE '00:00:00'::interval))) THEN d.credits
             ELSE ( SELECT sum(m.credits) AS sum
                FROM app.messages m
               WHERE ((m.subject_id = d.subject_id) AND (m.finished_at >= GREATEST(((d.day)::timestamp without time zone AT TIME ZONE '00:00:00'::interval), sum_credits.period_start)) AND (m.finished_at < LEAST((((d.day + 1))::timestamp without time zone AT TIME ZONE '00:00:00'::interval), sum_credits.period_end))))
         END), (0)::numeric) AS "coalesce"
    FROM app.usage_daily d
   WHERE ((d.subject_id = sum_credits.subject) AND (d.day > ((sum_credits.period_start AT TIME ZONE '00:00:00'::interval) - '1 day'::interval)) AND (d.day < (sum_credits.period_end AT TIME ZONE '00:00:00'::interval)));
END;

COMMENT ON FUNCTION app.sum_credits(subject uuid, period_start timestamp with time zone, period_end timestamp with time zone) IS 'Exact credits of a payer in [start, end): whole days, and messages of cut days.';

CREATE FUNCTION app.get_period_usage(subject uuid, anchor timestamp with time zone, reset timestamp with time zone, moment timestamp with time zone, known_start timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS TABLE(period_start timestamp with time zone, end_date timestamp with time zone, credits_used numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT p.period_start,
     p.end_date,
     s.credits_used
    FROM (( SELECT app.get_start_date(get_period_usage.anchor, get_period_usage.reset, get_period_usage.moment, get_period_usage.known_start) AS period_start,
             COALESCE(app.get_next_reset(get_period_usage.anchor, get_period_usage.reset, get_period_usage.moment), get_period_usage.moment) AS end_date
          LIMIT ALL) p
      CROSS JOIN LATERAL app.sum_credits(get_period_usage.subject, p.period_start, p.end_date) s(credits_used));
END;

COMMENT ON FUNCTION app.get_period_usage(subject uuid, anchor timestamp with time zone, reset timestamp with time zone, moment timestamp with time zone, known_start timestamp with time zone) IS 'The period of a payer that holds the moment, half-open, and its exact credits.';

CREATE FUNCTION app.grant_referral_credits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    short_user uuid;
BEGIN
    -- Lock both users of every row in id order before changing any, so that crossing
    -- redemptions queue up instead of deadlocking.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id IN (
        SELECT unnest(ARRAY[c.referrer_id, c.referred_id])
        FROM changed AS c
        WHERE c.status = 'completed'
    )
    ORDER BY u.id
    FOR NO KEY UPDATE;

    UPDATE app.users AS u
    SET
        referral_count = u.referral_count + side.referrals,
        referral_credits = u.referral_credits + side.credits
    FROM (
        SELECT
            s.user_id,
            sum(s.referrals) AS referrals,
            sum(c.credits) AS credits
        FROM changed AS c
        CROSS JOIN LATERAL (
            VALUES (c.referrer_id, 1), (c.referred_id, 0)
        ) AS s (user_id, referrals)
        WHERE c.status = 'completed' AND c.completed_at = now()
        GROUP BY s.user_id
    ) AS side
    WHERE u.id = side.user_id;

    -- A row completed at another time comes from a dump and was granted then: the
    -- users' totals must include it. Restored by rows, it is counted before the rest.
    SELECT restored.user_id INTO short_user
    FROM (
        SELECT DISTINCT unnest(ARRAY[c.referrer_id, c.referred_id]) AS user_id
        FROM changed AS c
        WHERE c.status = 'completed' AND c.completed_at <> now()
    ) AS restored
    LEFT JOIN app.users AS u ON restored.user_id = u.id
    CROSS JOIN LATERAL (
        SELECT
            count(*) FILTER (WHERE r.referrer_id = restored.user_id) AS referrals,
            sum(r.credits) AS credits
        FROM app.referrals AS r
        WHERE restored.user_id IN (r.referrer_id, r.referred_id)
            AND r.status = 'completed'
    ) AS held
    WHERE (u.referral_count >= held.referrals AND u.referral_credits >= held.credits)
        IS NOT TRUE
        -- Its snapshot may be older than another restore's commit.
        OR current_setting('transaction_isolation') = 'repeatable read'
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a referral of user % was completed earlier and is not in the'
            ' user''s totals: restore users before referrals, by READ COMMITTED; to'
            ' complete it now, leave completed_at NULL', short_user
            USING ERRCODE = 'restrict_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.grant_referral_credits() IS 'Trigger: grants what this transaction completes; earlier ones must be counted.';

CREATE FUNCTION app.judge_stripe_view(seen_at timestamp with time zone, known_at timestamp with time zone, is_settled boolean, source text, can_ask boolean) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN ((known_at IS NULL) OR (source = 'object'::text)) THEN 'applied'::text WHEN (date_trunc('second'::text, seen_at) >= (known_at + '00:00:01'::interval)) THEN 'applied'::text WHEN (is_settled AND (date_trunc('second'::text, seen_at) >= date_trunc('second'::text, known_at))) THEN 'applied'::text WHEN ((date_trunc('second'::text, seen_at) < date_trunc('second'::text, known_at)) AND (is_settled OR (source = 'event'::text))) THEN 'stale'::text WHEN can_ask THEN 'unclear'::text ELSE 'applied'::text END;

COMMENT ON FUNCTION app.judge_stripe_view(seen_at timestamp with time zone, known_at timestamp with time zone, is_settled boolean, source text, can_ask boolean) IS 'applied, stale or unclear: newer counts, and in the same second what is the same.';

CREATE FUNCTION app.lock_stripe_customer(customer_id text) RETURNS void
    LANGUAGE sql
    RETURN pg_advisory_xact_lock(hashtextextended(customer_id, (0)::bigint));

COMMENT ON FUNCTION app.lock_stripe_customer(customer_id text) IS 'Until the transaction ends nobody else changes what is known of the customer.';

CREATE FUNCTION app.put_stripe_customers(views jsonb, source text, can_ask boolean, match_email boolean, is_dry_run boolean) RETURNS TABLE(id text, verdict text, differences text[], user_id uuid, released_user_id uuid, proposed_user_id uuid)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (v.id) v.*
        FROM jsonb_to_recordset(views) AS v (
            id text,
            user_id uuid,
            email text,
            is_deleted boolean,
            created_at timestamptz,
            as_of timestamptz
        )
        ORDER BY v.id
    ),

    -- Whoever is linked stays so until another is named.
    claimed AS MATERIALIZED (
        SELECT
            g.id,
            g.email,
            known.id IS NOT NULL AS is_known,
            g.is_deleted,
            -- No event revives a customer; what Stripe lists is not deleted.
            g.is_deleted
            OR (known.is_deleted IS TRUE AND source = 'event') AS is_gone,
            known.is_deleted AS was_deleted,
            COALESCE(g.created_at, known.created_at) AS created_at,
            known.created_at AS known_created_at,
            g.as_of,
            known.as_of AS known_as_of,
            known.is_provisional AS was_provisional,
            known.user_id AS known_user_id,
            holder.id AS holder_id,
            COALESCE(claimant.id, known.user_id, holder.id) AS owner_id,
            claimant.id IS NULL
            OR claimant.id IS NOT DISTINCT FROM known.user_id AS is_same
        FROM given AS g
        LEFT JOIN LATERAL (
            SELECT c.*
            FROM app.stripe_customers AS c
            WHERE c.id = g.id
            LIMIT 1
        ) AS known ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.id = g.user_id
            LIMIT 1
        ) AS claimant ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.id
            LIMIT 1
        ) AS holder ON TRUE
    ),

    -- E-mail links only if told so, and nobody who has a customer or is named by one.
    owned AS (
        SELECT
            c.*,
            c.was_deleted IS TRUE AND NOT c.is_gone AS is_revived,
            proposed.id AS proposed_user_id,
            COALESCE(
                c.owner_id, CASE WHEN match_email THEN proposed.id END
            ) AS user_id
        FROM claimed AS c
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE c.owner_id IS NULL
                AND lower(u.email) = lower(c.email)
                AND u.stripe_customer_id IS NULL
                AND NOT u.id IN (
                    SELECT o.owner_id
                    FROM claimed AS o
                    WHERE o.owner_id IS NOT NULL
                )
            LIMIT 1
        ) AS proposed ON TRUE
    ),

    judged AS MATERIALIZED (
        SELECT
            o.*,
            -- What is known by name only takes any view, and a deletion always counts.
            CASE
                WHEN o.known_created_at IS NULL THEN 'applied'
                WHEN o.is_deleted AND NOT o.was_deleted THEN 'applied'
                ELSE app.judge_stripe_view(
                    o.as_of,
                    o.known_as_of,
                    o.is_same
                    AND NOT o.is_revived
                    AND NOT (o.was_provisional AND source = 'page'),
                    source,
                    can_ask
                )
            END AS verdict,
            COALESCE(
                source = 'event'
                AND o.known_created_at IS NOT NULL
                AND date_trunc('second', o.as_of) = date_trunc('second', o.known_as_of)
                AND (o.was_provisional OR NOT o.is_same),
                FALSE
            ) AS is_provisional,
            array_remove(ARRAY[
                CASE WHEN NOT o.is_known OR o.is_revived THEN 'missing_here' END,
                CASE WHEN o.is_gone AND NOT o.was_deleted THEN 'missing_there' END,
                CASE
                    WHEN o.is_known
                        AND o.created_at IS DISTINCT FROM o.known_created_at
                        THEN 'created_at'
                END,
                CASE
                    WHEN NOT o.is_gone AND o.user_id IS NULL THEN 'unlinked'
                    WHEN o.is_known AND o.user_id IS DISTINCT FROM o.known_user_id
                        THEN 'unlinked'
                END
            ], NULL) AS differences
        FROM owned AS o
    ),

    kept AS MATERIALIZED (
        SELECT
            j.*,
            CASE WHEN j.holder_id <> j.user_id THEN j.holder_id END AS released_user_id
        FROM judged AS j
        WHERE j.verdict = 'applied' AND NOT is_dry_run
    ),

    put AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, is_deleted, created_at, as_of, is_provisional
        )
        SELECT
            k.id,
            k.user_id,
            k.is_gone,
            k.created_at,
            k.as_of,
            k.is_provisional
        FROM kept AS k
        ON CONFLICT (id) DO UPDATE
        SET
            user_id = excluded.user_id,
            is_deleted = excluded.is_deleted,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, c.as_of),
            is_provisional = excluded.is_provisional
    ),

    moved AS (
        UPDATE app.stripe_subscriptions AS s
        SET user_id = k.user_id
        FROM kept AS k
        WHERE s.customer_id = k.id AND s.user_id IS DISTINCT FROM k.user_id
    ),

    -- A customer has one user: he who loses it lets go before the other takes it.
    released AS (
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        FROM (
            SELECT k.released_user_id AS id
            FROM kept AS k
            ORDER BY k.released_user_id
        ) AS r
        WHERE u.id = r.id
    )

    SELECT
        j.id,
        j.verdict,
        j.differences,
        j.user_id,
        k.released_user_id,
        j.proposed_user_id
    FROM judged AS j
    LEFT JOIN kept AS k ON j.id = k.id
    ORDER BY j.id;
END;
$$;

COMMENT ON FUNCTION app.put_stripe_customers(views jsonb, source text, can_ask boolean, match_email boolean, is_dry_run boolean) IS 'Judges views of customers, their user_id a claim, and keeps those that count.';

CREATE FUNCTION app.put_stripe_subscriptions(views jsonb, source text, can_ask boolean, is_dry_run boolean) RETURNS TABLE(id text, verdict text, differences text[], user_id uuid)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (v.id) v.*
        FROM jsonb_populate_recordset(NULL::app.stripe_subscriptions, views) AS v
        ORDER BY v.id
    ),

    compared AS MATERIALIZED (
        SELECT
            g.*,
            known.as_of AS known_as_of,
            known.is_provisional AS was_provisional,
            COALESCE(customer.user_id, holder.id) AS owner_id,
            CASE
                WHEN known.id IS NULL THEN ARRAY['missing_here']
                ELSE array_remove(ARRAY[
                    CASE
                        WHEN (g.status, g.canceled_at)
                            IS DISTINCT FROM (known.status, known.canceled_at)
                            THEN 'status'
                    END,
                    CASE
                        WHEN g.price_id IS DISTINCT FROM known.price_id THEN 'price'
                    END,
                    CASE
                        WHEN (
                            g.current_period_start, g.current_period_end,
                            g.billing_cycle_anchor, g.cancel_at_period_end
                        ) IS DISTINCT FROM (
                            known.current_period_start, known.current_period_end,
                            known.billing_cycle_anchor, known.cancel_at_period_end
                        )
                            THEN 'period'
                    END,
                    CASE WHEN g.created_at <> known.created_at THEN 'created_at' END
                ], NULL)
            END AS differences
        FROM given AS g
        LEFT JOIN LATERAL (
            SELECT s.*
            FROM app.stripe_subscriptions AS s
            WHERE s.id = g.id
            LIMIT 1
        ) AS known ON TRUE
        LEFT JOIN LATERAL (
            SELECT c.user_id
            FROM app.stripe_customers AS c
            WHERE c.id = g.customer_id
            LIMIT 1
        ) AS customer ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.customer_id
            LIMIT 1
        ) AS holder ON TRUE
    ),

    judged AS MATERIALIZED (
        SELECT
            c.*,
            app.judge_stripe_view(
                c.as_of,
                c.known_as_of,
                c.differences = '{}' AND NOT (c.was_provisional AND source = 'page'),
                source,
                can_ask
            ) AS verdict
        FROM compared AS c
    ),

    put AS (
        INSERT INTO app.stripe_subscriptions AS s (
            id, customer_id, user_id, status, price_id, current_period_start,
            current_period_end, billing_cycle_anchor, cancel_at_period_end, canceled_at,
            created_at, as_of, is_provisional
        )
        SELECT
            j.id,
            j.customer_id,
            j.owner_id,
            j.status,
            j.price_id,
            j.current_period_start,
            j.current_period_end,
            j.billing_cycle_anchor,
            j.cancel_at_period_end,
            j.canceled_at,
            j.created_at,
            j.as_of,
            COALESCE(
                source = 'event'
                AND date_trunc('second', j.as_of) = date_trunc('second', j.known_as_of)
                AND (j.was_provisional OR j.differences <> '{}'),
                FALSE
            ) AS is_provisional
        FROM judged AS j
        WHERE j.verdict = 'applied' AND NOT is_dry_run
        ON CONFLICT (id) DO UPDATE
        SET
            customer_id = excluded.customer_id,
            user_id = excluded.user_id,
            status = excluded.status,
            price_id = excluded.price_id,
            current_period_start = excluded.current_period_start,
            current_period_end = excluded.current_period_end,
            billing_cycle_anchor = excluded.billing_cycle_anchor,
            cancel_at_period_end = excluded.cancel_at_period_end,
            canceled_at = excluded.canceled_at,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, s.as_of),
            is_provisional = excluded.is_provisional
    )

    SELECT
        j.id,
        j.verdict,
        j.differences,
        j.owner_id AS user_id
    FROM judged AS j
    ORDER BY j.id;
END;
$$;

COMMENT ON FUNCTION app.put_stripe_subscriptions(views jsonb, source text, can_ask boolean, is_dry_run boolean) IS 'Judges views of subscriptions, and keeps those that count.';

CREATE FUNCTION app.put_stripe_views(noun text, views jsonb, source text, can_ask boolean, match_email boolean DEFAULT false, is_dry_run boolean DEFAULT false) RETURNS TABLE(id text, verdict text, differences text[], user_id uuid, released_user_id uuid, proposed_user_id uuid)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    -- Those whom the customers belong to, did, or may: in one order, before a row that
    -- refers to them is written, whose foreign key would share their lock otherwise.
    IF NOT is_dry_run THEN
        PERFORM u.id
        FROM app.users AS u
        WHERE u.id = ANY(ARRAY(
            SELECT unnest(ARRAY[
                (v.view ->> 'user_id')::uuid,
                (SELECT c.user_id FROM app.stripe_customers AS c WHERE c.id = n.id),
                (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = n.id),
                (
                    SELECT p.id
                    FROM app.users AS p
                    WHERE match_email AND lower(p.email) = lower(v.view ->> 'email')
                )
            ])
            FROM jsonb_array_elements(views) AS v (view)
            CROSS JOIN LATERAL (
                SELECT COALESCE(v.view ->> 'customer_id', v.view ->> 'id') AS id
            ) AS n
        ))
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;
    IF noun = 'customers' THEN
        RETURN QUERY
        SELECT p.*
        FROM app.put_stripe_customers(
            views, source, can_ask, match_email, is_dry_run
        ) AS p;
    ELSIF noun = 'subscriptions' THEN
        RETURN QUERY
        SELECT
            p.*,
            NULL::uuid,
            NULL::uuid
        FROM app.put_stripe_subscriptions(views, source, can_ask, is_dry_run) AS p;
    END IF;
END;
$$;

COMMENT ON FUNCTION app.put_stripe_views(noun text, views jsonb, source text, can_ask boolean, match_email boolean, is_dry_run boolean) IS 'Judges views of customers or of subscriptions, and keeps those that count.';

CREATE FUNCTION app.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

COMMENT ON FUNCTION app.refuse_change() IS 'Trigger: refuses, giving its argument as the reason and its name as constraint.';

CREATE FUNCTION app.refuse_user_id() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM app.users AS u WHERE u.id = NEW.id) THEN
        RAISE EXCEPTION 'fingerprint % is the id of a user', NEW.id
            USING ERRCODE = 'check_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.refuse_user_id() IS 'Trigger: refuses a fingerprint whose id is a user''s.';

CREATE FUNCTION app.repair_referral_totals(repaired_id uuid) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair has to see what others commit: use READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM FROM app.users AS u
    WHERE u.id = repaired_id
    FOR NO KEY UPDATE;

    UPDATE app.users AS u
    SET
        referral_count = s.referrals,
        referral_credits = GREATEST(u.referral_credits, s.credits)
    FROM (
        SELECT
            count(*) FILTER (WHERE r.referrer_id = repaired_id) AS referrals,
            COALESCE(sum(r.credits), 0) AS credits
        FROM app.referrals AS r
        WHERE repaired_id IN (r.referrer_id, r.referred_id)
            AND r.status = 'completed'
    ) AS s
    WHERE u.id = repaired_id
        AND (u.referral_count <> s.referrals OR u.referral_credits < s.credits);
    RETURN FOUND;
END;
$$;

COMMENT ON FUNCTION app.repair_referral_totals(repaired_id uuid) IS 'Sets the count, raises the credits to what referrals say; whether it changed.';

CREATE FUNCTION app.repair_usage_day(subject uuid, usage_day date) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    is_changed boolean := FALSE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair has to see what others commit: use READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- For usage_daily_kept_by_trigger; it grants no privilege to write the table.
    PERFORM set_config('app.is_repairing', 'on', TRUE);
    LOOP
        PERFORM FROM app.usage_daily AS d
        WHERE d.subject_id = subject AND d.day = usage_day
        FOR UPDATE;
        EXIT WHEN FOUND;
        -- Nothing to lock. If a writer makes the row first, this waits for its commit,
        -- does nothing, and goes on with that row.
        INSERT INTO app.usage_daily AS d (
            subject_id, day, messages, input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens, cost, credits
        )
        SELECT
            subject,
            usage_day,
            s.messages,
            s.input_tokens,
            s.cache_creation_input_tokens,
            s.cache_read_input_tokens,
            s.output_tokens,
            s.cost,
            s.credits
        FROM app.sum_usage_day(subject, usage_day) AS s
        ON CONFLICT ON CONSTRAINT usage_daily_pkey DO NOTHING;
        is_changed := FOUND;
        EXIT WHEN is_changed
            OR NOT EXISTS (SELECT FROM app.sum_usage_day(subject, usage_day));
    END LOOP;
    IF NOT is_changed THEN
        UPDATE app.usage_daily AS d
        SET
            messages = s.messages,
            input_tokens = s.input_tokens,
            cache_creation_input_tokens = s.cache_creation_input_tokens,
            cache_read_input_tokens = s.cache_read_input_tokens,
            output_tokens = s.output_tokens,
            cost = s.cost,
            credits = s.credits
        FROM app.sum_usage_day(subject, usage_day) AS s
        WHERE d.subject_id = subject
            AND d.day = usage_day
            AND (
                d.messages, d.input_tokens, d.cache_creation_input_tokens,
                d.cache_read_input_tokens, d.output_tokens, d.cost, d.credits
            ) IS DISTINCT FROM (
                s.messages, s.input_tokens, s.cache_creation_input_tokens,
                s.cache_read_input_tokens, s.output_tokens, s.cost, s.credits
            );
        is_changed := FOUND;
        DELETE FROM app.usage_daily AS d
        WHERE d.subject_id = subject
            AND d.day = usage_day
            AND NOT EXISTS (SELECT FROM app.sum_usage_day(subject, usage_day));
        is_changed := is_changed OR FOUND;
    END IF;
    PERFORM set_config('app.is_repairing', '', TRUE);
    RETURN is_changed;
END;
$$;

COMMENT ON FUNCTION app.repair_usage_day(subject uuid, usage_day date) IS 'Sets a payer''s day in usage_daily to the sum of messages; whether it changed.';

CREATE FUNCTION app.retire_payload_partition(keep_from date) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    foreign_key text;
    partition text := (
        SELECT min(c.relname)
        FROM pg_catalog.pg_inherits AS i
        INNER JOIN pg_catalog.pg_class AS c ON i.inhrelid = c.oid
        WHERE i.inhparent = 'app.message_payloads'::regclass
            AND c.relname ~ '^message_payloads_[0-9]{6}$'
            AND to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' <= keep_from
    );
BEGIN
    IF partition IS NOT NULL THEN
        -- In the order of the writers, who would deadlock with another. Dropping the
        -- foreign key needs the strongest lock, and is done here so that the table can
        -- later be dropped without locking messages.
        LOCK TABLE app.messages IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'ALTER TABLE app.message_payloads DETACH PARTITION app.%I', partition
        );
        EXECUTE format('ALTER TABLE app.%I RENAME TO retired_payloads', partition);
        FOR foreign_key IN
            SELECT c.conname
            FROM pg_catalog.pg_constraint AS c
            WHERE c.conrelid = to_regclass('app.retired_payloads')
                AND c.contype = 'f'
        LOOP
            EXECUTE format(
                'ALTER TABLE app.retired_payloads DROP CONSTRAINT %I', foreign_key
            );
        END LOOP;
    END IF;
    RETURN partition;
END;
$_$;

COMMENT ON FUNCTION app.retire_payload_partition(keep_from date) IS 'Detaches the oldest month over by the date as retired_payloads; returns its name.';

CREATE FUNCTION app.set_completed_at() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    NEW.completed_at := now();
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.set_completed_at() IS 'Trigger: stamps a referral with the time of the transaction that completes it.';

CREATE FUNCTION app.set_updated_at() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.set_updated_at() IS 'Trigger: stamps the row with the time of the transaction that changes it.';

CREATE FUNCTION app.sum_usage_day(subject uuid, usage_day date) RETURNS TABLE(messages bigint, input_tokens bigint, cache_creation_input_tokens bigint, cache_read_input_tokens bigint, output_tokens bigint, cost numeric, credits numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT count(*) AS messages,
     sum(m.input_tokens) AS input_tokens,
     sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
     sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
     sum(m.output_tokens) AS output_tokens,
     sum(m.cost) AS cost,
     sum(m.credits) AS credits
    FROM app.messages m
   WHERE ((m.subject_id = sum_usage_day.subject) AND (m.finished_at >= ((sum_usage_day.usage_day)::timestamp without time zone AT TIME ZONE '00:00:00'::interval)) AND (m.finished_at < (((sum_usage_day.usage_day + 1))::timestamp without time zone AT TIME ZONE '00:00:00'::interval)))
  HAVING (count(*) > 0);
END;

COMMENT ON FUNCTION app.sum_usage_day(subject uuid, usage_day date) IS 'What the messages of a payer''s UTC day add up to; no row if there are none.';

CREATE FUNCTION app.sync_stripe_users(user_ids uuid[], is_dry_run boolean DEFAULT false) RETURNS TABLE(id uuid, customer_id text, subscription_id text, differences text[], has_unknown_price boolean)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    -- Two customers of one user have two locks; here their transactions queue up, and
    -- the statement below sees what the first one did.
    IF NOT is_dry_run THEN
        PERFORM u.id
        FROM app.users AS u
        WHERE u.id = ANY(user_ids)
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;

    RETURN QUERY
    WITH mirrored AS (
        SELECT
            held.id,
            held,
            COALESCE(customer.id, held.stripe_customer_id) AS customer_id,
            COALESCE(customer.created_at, held.created_at) AS created_at,
            best.id AS subscription_id,
            best.price_id,
            -- Deleting a customer cancels what it has, if the news of it came or not.
            CASE
                WHEN customer.is_deleted AND best.status <> 'incomplete_expired'
                    THEN 'canceled'
                ELSE best.status
            END AS status,
            best.billing_cycle_anchor AS anchor,
            best.current_period_start AS period_start,
            best.current_period_end AS period_end
        FROM app.users AS held
        -- A live customer, of those one with an active subscription, for a checkout may
        -- have made another one; then the one that he has, else the first.
        LEFT JOIN LATERAL (
            SELECT
                c.id,
                c.is_deleted,
                c.created_at
            FROM (
                SELECT
                    k.id,
                    k.is_deleted,
                    k.created_at
                FROM app.stripe_customers AS k
                WHERE k.user_id = held.id
                UNION ALL
                -- The one that he has may not have been seen yet.
                SELECT
                    held.stripe_customer_id AS id,
                    FALSE AS is_deleted,
                    NULL AS created_at
                WHERE held.stripe_customer_id IS NOT NULL
                    AND NOT EXISTS (
                        SELECT
                        FROM app.stripe_customers AS k
                        WHERE k.id = held.stripe_customer_id
                    )
            ) AS c
            ORDER BY
                c.is_deleted,
                EXISTS (
                    SELECT
                    FROM app.stripe_subscriptions AS s
                    WHERE s.customer_id = c.id AND app.is_active_status(s.status)
                ) DESC,
                c.id = held.stripe_customer_id DESC NULLS LAST,
                c.created_at,
                c.id
            LIMIT 1
        ) AS customer ON TRUE
        -- An active subscription, and of those the one that is paid longest.
        LEFT JOIN LATERAL (
            SELECT s.*
            FROM app.stripe_subscriptions AS s
            WHERE s.customer_id = COALESCE(customer.id, held.stripe_customer_id)
            ORDER BY
                app.is_active_status(s.status) DESC,
                s.current_period_end DESC NULLS LAST,
                s.created_at DESC,
                s.id
            LIMIT 1
        ) AS best ON TRUE
        WHERE held.id = ANY(user_ids)
    ),

    priced AS (
        SELECT
            m.*,
            plan.monthly_credits AS plan_credits,
            app.is_active_status(m.status) AS is_active,
            CASE
                WHEN NOT app.is_active_status(m.status) THEN 'kept'
                -- Paid up to the next boundary of Stripe's anchor: the quota's month.
                WHEN m.period_end = app.get_period_end(m.anchor, m.period_start)
                    THEN 'anchored'
                WHEN m.period_end - m.period_start
                    BETWEEN interval '28 days' AND interval '31 days'
                    THEN 'paid'
                -- More than a month is paid, or less: the quota resets monthly.
                ELSE 'monthly'
            END AS cycle
        FROM mirrored AS m
        LEFT JOIN app.plans AS plan ON m.price_id = plan.stripe_price_id
    ),

    anchored AS (
        SELECT
            p.*,
            CASE p.cycle
                WHEN 'kept' THEN (p.held).quota_anchor
                WHEN 'anchored' THEN p.anchor
                WHEN 'paid' THEN p.period_end
                ELSE COALESCE(p.anchor, p.period_end, (p.held).quota_anchor)
            END AS new_anchor
        FROM priced AS p
    ),

    wanted AS MATERIALIZED (
        SELECT
            a.id,
            a.held,
            a.customer_id,
            a.created_at,
            a.subscription_id,
            a.price_id,
            a.status,
            COALESCE(
                CASE WHEN a.is_active THEN a.plan_credits END,
                (SELECT p.monthly_credits FROM app.plans AS p WHERE p.id = 'free'),
                (a.held).base_quota
            ) AS base_quota,
            a.new_anchor AS quota_anchor,
            CASE
                WHEN a.cycle IN ('anchored', 'paid') THEN a.period_end
                -- A lapsed reset on the same boundaries means the next one already.
                WHEN a.cycle = 'monthly'
                    AND (
                        a.new_anchor <> (a.held).quota_anchor
                        OR (a.held).next_quota_reset > now()
                    )
                    THEN app.get_period_end(a.new_anchor, now())
                ELSE (a.held).next_quota_reset
            END AS next_quota_reset,
            a.is_active AND a.plan_credits IS NULL AS has_unknown_price
        FROM anchored AS a
    ),

    compared AS MATERIALIZED (
        SELECT
            w.*,
            array_remove(ARRAY[
                CASE
                    WHEN w.customer_id IS DISTINCT FROM (w.held).stripe_customer_id
                        THEN 'unlinked'
                END,
                CASE WHEN w.created_at <> (w.held).created_at THEN 'created_at' END,
                CASE
                    WHEN (w.subscription_id, w.status)
                        IS DISTINCT FROM (
                            (w.held).stripe_subscription_id,
                            (w.held).subscription_status
                        )
                        THEN 'status'
                END,
                CASE
                    WHEN (w.price_id, w.base_quota)
                        IS DISTINCT FROM (
                            (w.held).stripe_price_id, (w.held).base_quota
                        )
                        THEN 'price'
                END,
                CASE
                    WHEN (w.quota_anchor, w.next_quota_reset)
                        IS DISTINCT FROM (
                            (w.held).quota_anchor, (w.held).next_quota_reset
                        )
                        THEN 'period'
                END
            ], NULL) AS differences
        FROM wanted AS w
        -- A changed key is a stronger lock, which is taken in the order of ids as well.
        ORDER BY w.id
    ),

    synced AS (
        UPDATE app.users AS u
        SET
            stripe_customer_id = c.customer_id,
            created_at = c.created_at,
            stripe_subscription_id = c.subscription_id,
            stripe_price_id = c.price_id,
            subscription_status = c.status,
            base_quota = c.base_quota,
            quota_anchor = c.quota_anchor,
            next_quota_reset = c.next_quota_reset
        FROM compared AS c
        WHERE u.id = c.id AND c.differences <> '{}' AND NOT is_dry_run
    )

    SELECT
        c.id,
        c.customer_id,
        c.subscription_id,
        c.differences,
        COALESCE(c.has_unknown_price, FALSE)
    FROM compared AS c
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.sync_stripe_users(user_ids uuid[], is_dry_run boolean) IS 'Gives users what their customers and the best subscriptions say, and tells it.';

CREATE FUNCTION app.take_stripe_event(id text, type text, api_version text, event_created_at timestamp with time zone, payload jsonb, lock_key text, noun text, view jsonb, can_ask boolean) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    result text := 'ignored';
    judged record;
BEGIN
    -- What the lock waits for must be seen after it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.take_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = take_stripe_event.id
            AND e.status IN ('applied', 'stale', 'ignored')
    ) THEN
        RETURN 'duplicate';
    END IF;

    IF noun IS NOT NULL THEN
        SELECT p.* INTO judged
        FROM app.put_stripe_views(
            noun, jsonb_build_array(view), 'event', can_ask
        ) AS p;
        result := judged.verdict;
        IF result = 'unclear' THEN
            RETURN result;
        END IF;
        IF result = 'applied' THEN
            PERFORM u.id
            FROM app.sync_stripe_users(
                ARRAY[judged.released_user_id, judged.user_id]
            ) AS u;
        END IF;
    END IF;
    INSERT INTO app.stripe_events AS e (
        id, type, api_version, event_created_at, payload, status, attempts, processed_at
    )
    VALUES (
        take_stripe_event.id, take_stripe_event.type, take_stripe_event.api_version,
        take_stripe_event.event_created_at, take_stripe_event.payload, result, 1, now()
    )
    ON CONFLICT (id) DO UPDATE
    SET
        status = excluded.status,
        payload = excluded.payload,
        attempts = e.attempts + 1,
        processed_at = excluded.processed_at
    WHERE e.status IN ('received', 'failed');
    RETURN result;
END;
$$;

COMMENT ON FUNCTION app.take_stripe_event(id text, type text, api_version text, event_created_at timestamp with time zone, payload jsonb, lock_key text, noun text, view jsonb, can_ask boolean) IS 'Enters an event once, with the view it gives; of an unclear one it says so only.';

CREATE TABLE app.fingerprints (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    sig_hash text,
    base_quota numeric DEFAULT app.get_monthly_credits('anonymous'::text) NOT NULL,
    quota_anchor timestamp with time zone DEFAULT now() NOT NULL,
    next_quota_reset timestamp with time zone DEFAULT app.add_months(now(), 1),
    quota_period_start timestamp with time zone GENERATED ALWAYS AS (app.get_quota_period_start(quota_anchor, next_quota_reset)) STORED NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT fingerprints_base_quota_is_amount_check CHECK (((base_quota >= (0)::numeric) AND (base_quota < 'Infinity'::numeric)))
);

COMMENT ON TABLE app.fingerprints IS 'Anonymous devices, each with a quota of its own.';

COMMENT ON COLUMN app.fingerprints.sig_hash IS 'Hash of the device''s signature; NULL if it gave none.';

COMMENT ON COLUMN app.fingerprints.base_quota IS 'Credits a period while nobody is signed in.';

COMMENT ON COLUMN app.fingerprints.quota_anchor IS 'Periods begin at the anchor plus whole months in UTC.';

COMMENT ON COLUMN app.fingerprints.next_quota_reset IS 'When the period ends; once lapsed, the next boundary; NULL if it never resets.';

COMMENT ON COLUMN app.fingerprints.quota_period_start IS 'The boundary before next_quota_reset; the anchor where nothing resets.';

CREATE TABLE app.message_payloads (
    subject_id uuid NOT NULL,
    message_id uuid NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    request jsonb,
    response jsonb,
    last_message jsonb GENERATED ALWAYS AS ((request -> '-1'::integer)) STORED,
    CONSTRAINT message_payloads_not_empty_check CHECK ((num_nonnulls(request, response) > 0))
)
PARTITION BY RANGE (finished_at);

COMMENT ON TABLE app.message_payloads IS 'What was said: bulky, private, dropped by the month while the bill remains.';

COMMENT ON COLUMN app.message_payloads.subject_id IS 'Who paid for the message.';

COMMENT ON COLUMN app.message_payloads.message_id IS 'The message, within its payer.';

COMMENT ON COLUMN app.message_payloads.finished_at IS 'The message''s own time, which decides the month.';

COMMENT ON COLUMN app.message_payloads.request IS 'The conversation sent, an array of messages; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads.response IS 'The model''s answer; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads.last_message IS 'Last element of the request, or a bare value itself; NULL if empty or an object.';

CREATE TABLE app.message_payloads_202611 (
    subject_id uuid CONSTRAINT message_payloads_subject_id_not_null NOT NULL,
    message_id uuid CONSTRAINT message_payloads_message_id_not_null NOT NULL,
    finished_at timestamp with time zone CONSTRAINT message_payloads_finished_at_not_null NOT NULL,
    request jsonb,
    response jsonb,
    last_message jsonb GENERATED ALWAYS AS ((request -> '-1'::integer)) STORED,
    CONSTRAINT message_payloads_not_empty_check CHECK ((num_nonnulls(request, response) > 0))
);

COMMENT ON COLUMN app.message_payloads_202611.subject_id IS 'Who paid for the message.';

COMMENT ON COLUMN app.message_payloads_202611.message_id IS 'The message, within its payer.';

COMMENT ON COLUMN app.message_payloads_202611.finished_at IS 'The message''s own time, which decides the month.';

COMMENT ON COLUMN app.message_payloads_202611.request IS 'The conversation sent, an array of messages; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads_202611.response IS 'The model''s answer; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads_202611.last_message IS 'Last element of the request, or a bare value itself; NULL if empty or an object.';

CREATE TABLE app.message_payloads_202612 (
    subject_id uuid CONSTRAINT message_payloads_subject_id_not_null NOT NULL,
    message_id uuid CONSTRAINT message_payloads_message_id_not_null NOT NULL,
    finished_at timestamp with time zone CONSTRAINT message_payloads_finished_at_not_null NOT NULL,
    request jsonb,
    response jsonb,
    last_message jsonb GENERATED ALWAYS AS ((request -> '-1'::integer)) STORED,
    CONSTRAINT message_payloads_not_empty_check CHECK ((num_nonnulls(request, response) > 0))
);

COMMENT ON COLUMN app.message_payloads_202612.subject_id IS 'Who paid for the message.';

COMMENT ON COLUMN app.message_payloads_202612.message_id IS 'The message, within its payer.';

COMMENT ON COLUMN app.message_payloads_202612.finished_at IS 'The message''s own time, which decides the month.';

COMMENT ON COLUMN app.message_payloads_202612.request IS 'The conversation sent, an array of messages; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads_202612.response IS 'The model''s answer; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads_202612.last_message IS 'Last element of the request, or a bare value itself; NULL if empty or an object.';

CREATE TABLE app.message_payloads_202701 (
    subject_id uuid CONSTRAINT message_payloads_subject_id_not_null NOT NULL,
    message_id uuid CONSTRAINT message_payloads_message_id_not_null NOT NULL,
    finished_at timestamp with time zone CONSTRAINT message_payloads_finished_at_not_null NOT NULL,
    request jsonb,
    response jsonb,
    last_message jsonb GENERATED ALWAYS AS ((request -> '-1'::integer)) STORED,
    CONSTRAINT message_payloads_not_empty_check CHECK ((num_nonnulls(request, response) > 0))
);

COMMENT ON COLUMN app.message_payloads_202701.subject_id IS 'Who paid for the message.';

COMMENT ON COLUMN app.message_payloads_202701.message_id IS 'The message, within its payer.';

COMMENT ON COLUMN app.message_payloads_202701.finished_at IS 'The message''s own time, which decides the month.';

COMMENT ON COLUMN app.message_payloads_202701.request IS 'The conversation sent, an array of messages; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads_202701.response IS 'The model''s answer; NULL if it was not kept.';

COMMENT ON COLUMN app.message_payloads_202701.last_message IS 'Last element of the request, or a bare value itself; NULL if empty or an object.';

CREATE TABLE app.message_payloads_default (
    subject_id uuid CONSTRAINT message_payloads_subject_id_not_null NOT NULL,
    message_id uuid CONSTRAINT message_payloads_message_id_not_null NOT NULL,
    finished_at timestamp with time zone CONSTRAINT message_payloads_finished_at_not_null NOT NULL,
    request jsonb,
    response jsonb,
    last_message jsonb GENERATED ALWAYS AS ((request -> '-1'::integer)) STORED,
    CONSTRAINT message_payloads_not_empty_check CHECK ((num_nonnulls(request, response) > 0))
);

COMMENT ON TABLE app.message_payloads_default IS 'Payloads of months that have no partition yet.';

CREATE TABLE app.referrals (
    referrer_id uuid NOT NULL,
    referred_id uuid NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    credits numeric NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    completed_at timestamp with time zone,
    CONSTRAINT referrals_completed_has_time_check CHECK (((status = 'completed'::text) = (completed_at IS NOT NULL))),
    CONSTRAINT referrals_credits_is_amount_check CHECK (((credits >= (0)::numeric) AND (credits <= (1000000)::numeric))),
    CONSTRAINT referrals_not_self_check CHECK ((referrer_id <> referred_id)),
    CONSTRAINT referrals_status_known_check CHECK ((status = ANY (ARRAY['pending'::text, 'completed'::text])))
);

COMMENT ON TABLE app.referrals IS 'Who referred whom; completing one counts it and grants its credits to both.';

COMMENT ON COLUMN app.referrals.referrer_id IS 'Whose code was used.';

COMMENT ON COLUMN app.referrals.referred_id IS 'Who used it; nobody is referred twice.';

COMMENT ON COLUMN app.referrals.status IS 'pending, then completed, which is final; a cancelled one is deleted.';

COMMENT ON COLUMN app.referrals.credits IS 'Credits granted to each of the two on completion; at most 1000000, 10000 USD.';

COMMENT ON COLUMN app.referrals.completed_at IS 'When it was completed, set by a trigger; NULL while pending.';

CREATE VIEW app.referral_drift WITH (security_invoker='true') AS
 WITH granted AS (
         SELECT side.user_id,
            sum(side.referrals) AS referrals,
            sum(r.credits) AS credits
           FROM (app.referrals r
             CROSS JOIN LATERAL ( VALUES (r.referrer_id,1), (r.referred_id,0)) side(user_id, referrals))
          WHERE (r.status = 'completed'::text)
          GROUP BY side.user_id
        )
 SELECT u.id AS user_id,
    u.referral_limit,
    u.referral_count AS kept_count,
    u.referral_credits AS kept_credits,
    COALESCE(g.referrals, (0)::bigint) AS completed_count,
    COALESCE(g.credits, (0)::numeric) AS granted_credits
   FROM (app.users u
     LEFT JOIN granted g ON ((u.id = g.user_id)))
  WHERE ((u.referral_count <> COALESCE(g.referrals, (0)::bigint)) OR (u.referral_credits <> COALESCE(g.credits, (0)::numeric)));

COMMENT ON VIEW app.referral_drift IS 'Users whose totals differ from referrals; higher credits were granted manually.';

COMMENT ON COLUMN app.referral_drift.user_id IS 'The user.';

COMMENT ON COLUMN app.referral_drift.referral_limit IS 'How many completed referrals the user may have.';

COMMENT ON COLUMN app.referral_drift.kept_count IS 'What users says.';

COMMENT ON COLUMN app.referral_drift.kept_credits IS 'What users says, in credits a period.';

COMMENT ON COLUMN app.referral_drift.completed_count IS 'How many referrals by the user are completed.';

COMMENT ON COLUMN app.referral_drift.granted_credits IS 'What completed referrals grant the user on either side, in credits a period.';

CREATE TABLE app.sessions (
    token_hash bytea NOT NULL,
    user_id uuid NOT NULL,
    fingerprint_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT sessions_expires_after_created_check CHECK ((expires_at > created_at)),
    CONSTRAINT sessions_token_hash_is_sha256_check CHECK ((length(token_hash) = 32))
);

COMMENT ON TABLE app.sessions IS 'Who is signed in; a session is valid before expires_at and never at it.';

COMMENT ON COLUMN app.sessions.token_hash IS 'SHA-256 of the token; the token itself is never stored.';

COMMENT ON COLUMN app.sessions.user_id IS 'Who is signed in.';

COMMENT ON COLUMN app.sessions.fingerprint_id IS 'The device that signed in; NULL if it is not known.';

COMMENT ON COLUMN app.sessions.expires_at IS 'The first instant at which the session is no longer valid.';

CREATE TABLE app.stripe_customers (
    id text NOT NULL,
    user_id uuid,
    is_deleted boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone,
    as_of timestamp with time zone NOT NULL,
    is_provisional boolean DEFAULT false NOT NULL,
    CONSTRAINT stripe_customers_id_shape_check CHECK ((id ~ '^cus_.'::text))
);

COMMENT ON TABLE app.stripe_customers IS 'Stripe''s customers as last seen; deleted is a state, not a missing row.';

COMMENT ON COLUMN app.stripe_customers.id IS 'Stripe''s cus_....';

COMMENT ON COLUMN app.stripe_customers.user_id IS 'Whom it was linked to, by metadata or at checkout; NULL until then.';

COMMENT ON COLUMN app.stripe_customers.is_deleted IS 'Whether Stripe has deleted it.';

COMMENT ON COLUMN app.stripe_customers.created_at IS 'When Stripe created it; NULL while only its name is known.';

COMMENT ON COLUMN app.stripe_customers.as_of IS 'The moment in Stripe''s time at which this row was true.';

COMMENT ON COLUMN app.stripe_customers.is_provisional IS 'Whether a tie was settled by order of arrival; reconciliation looks again.';

CREATE TABLE app.stripe_events (
    id text NOT NULL,
    type text NOT NULL,
    api_version text,
    event_created_at timestamp with time zone NOT NULL,
    payload jsonb,
    status text DEFAULT 'received'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    last_error text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    processed_at timestamp with time zone,
    CONSTRAINT stripe_events_attempts_not_negative_check CHECK ((attempts >= 0)),
    CONSTRAINT stripe_events_done_has_time_check CHECK (((status = ANY (ARRAY['applied'::text, 'stale'::text, 'ignored'::text])) = (processed_at IS NOT NULL))),
    CONSTRAINT stripe_events_failed_has_error_check CHECK (((status <> 'failed'::text) OR (last_error IS NOT NULL))),
    CONSTRAINT stripe_events_open_has_payload_check CHECK (((payload IS NOT NULL) OR (processed_at IS NOT NULL))),
    CONSTRAINT stripe_events_status_known_check CHECK ((status = ANY (ARRAY['received'::text, 'applied'::text, 'stale'::text, 'ignored'::text, 'failed'::text])))
);

COMMENT ON TABLE app.stripe_events IS 'The inbox: each verified event once, and what became of it.';

COMMENT ON COLUMN app.stripe_events.id IS 'Stripe''s evt_....';

COMMENT ON COLUMN app.stripe_events.type IS 'Stripe''s type, such as customer.subscription.updated.';

COMMENT ON COLUMN app.stripe_events.api_version IS 'The version that shaped the payload; NULL if Stripe named none.';

COMMENT ON COLUMN app.stripe_events.event_created_at IS 'When it happened in Stripe''s time, in whole seconds.';

COMMENT ON COLUMN app.stripe_events.payload IS 'The event as delivered; NULL once its retention has ended.';

COMMENT ON COLUMN app.stripe_events.status IS 'received, then applied, stale (older than what is known), ignored, or failed.';

COMMENT ON COLUMN app.stripe_events.attempts IS 'How often applying it was tried.';

COMMENT ON COLUMN app.stripe_events.last_error IS 'Why it last failed; NULL if it never did.';

COMMENT ON COLUMN app.stripe_events.received_at IS 'When its first delivery arrived.';

COMMENT ON COLUMN app.stripe_events.processed_at IS 'When it was applied, or found stale or not needed; NULL until then.';

CREATE TABLE app.stripe_subscriptions (
    id text NOT NULL,
    customer_id text NOT NULL,
    user_id uuid,
    status text NOT NULL,
    price_id text,
    current_period_start timestamp with time zone,
    current_period_end timestamp with time zone,
    billing_cycle_anchor timestamp with time zone,
    cancel_at_period_end boolean DEFAULT false NOT NULL,
    canceled_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    as_of timestamp with time zone NOT NULL,
    is_provisional boolean DEFAULT false NOT NULL,
    CONSTRAINT stripe_subscriptions_customer_id_shape_check CHECK ((customer_id ~ '^cus_.'::text)),
    CONSTRAINT stripe_subscriptions_id_shape_check CHECK ((id ~ '^sub_.'::text))
);

COMMENT ON TABLE app.stripe_subscriptions IS 'Stripe''s subscriptions as last seen; canceled is a state, not a missing row.';

COMMENT ON COLUMN app.stripe_subscriptions.id IS 'Stripe''s sub_....';

COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS 'Stripe''s cus_...; no foreign key, for the subscription may arrive first.';

COMMENT ON COLUMN app.stripe_subscriptions.user_id IS 'Whose it is; NULL until the customer is known here.';

COMMENT ON COLUMN app.stripe_subscriptions.status IS 'Stripe''s word; Stripe adds new ones.';

COMMENT ON COLUMN app.stripe_subscriptions.price_id IS 'Price of the item that counts; NULL if it has none.';

COMMENT ON COLUMN app.stripe_subscriptions.current_period_start IS 'Start of the paid period; NULL if Stripe gives none.';

COMMENT ON COLUMN app.stripe_subscriptions.current_period_end IS 'End of the paid period, the earliest of its items; NULL if Stripe gives none.';

COMMENT ON COLUMN app.stripe_subscriptions.billing_cycle_anchor IS 'The instant from which Stripe counts its periods; NULL if Stripe gives none.';

COMMENT ON COLUMN app.stripe_subscriptions.cancel_at_period_end IS 'Whether it ends with the paid period.';

COMMENT ON COLUMN app.stripe_subscriptions.canceled_at IS 'When it was canceled; NULL if it was not.';

COMMENT ON COLUMN app.stripe_subscriptions.created_at IS 'When Stripe created it.';

COMMENT ON COLUMN app.stripe_subscriptions.as_of IS 'The moment in Stripe''s time at which this row was true.';

COMMENT ON COLUMN app.stripe_subscriptions.is_provisional IS 'Whether a tie was settled by order of arrival; reconciliation looks again.';

CREATE TABLE app.stripe_sync_runs (
    id bigint NOT NULL,
    kind text NOT NULL,
    is_dry_run boolean DEFAULT false NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    cursor text,
    counts jsonb DEFAULT '{}'::jsonb NOT NULL,
    outcome text DEFAULT 'running'::text NOT NULL,
    last_error text,
    CONSTRAINT stripe_sync_runs_ended_has_time_check CHECK (((outcome = 'running'::text) = (finished_at IS NULL))),
    CONSTRAINT stripe_sync_runs_kind_known_check CHECK ((kind = ANY (ARRAY['reconcile'::text, 'replay'::text]))),
    CONSTRAINT stripe_sync_runs_outcome_known_check CHECK ((outcome = ANY (ARRAY['running'::text, 'completed'::text, 'failed'::text])))
);

COMMENT ON TABLE app.stripe_sync_runs IS 'Each reconciliation and replay: when, how far, what it found, how it ended.';

COMMENT ON COLUMN app.stripe_sync_runs.kind IS 'reconcile or replay.';

COMMENT ON COLUMN app.stripe_sync_runs.is_dry_run IS 'Whether it only looked.';

COMMENT ON COLUMN app.stripe_sync_runs.started_at IS 'When it began.';

COMMENT ON COLUMN app.stripe_sync_runs.finished_at IS 'When it ended; NULL while it runs, or if it was killed.';

COMMENT ON COLUMN app.stripe_sync_runs.cursor IS 'The cursor it goes on from after a kill; NULL before the first page.';

COMMENT ON COLUMN app.stripe_sync_runs.counts IS 'What it has seen and found so far, by kind.';

COMMENT ON COLUMN app.stripe_sync_runs.outcome IS 'running, completed or failed.';

COMMENT ON COLUMN app.stripe_sync_runs.last_error IS 'Why it failed; NULL if it did not.';

ALTER TABLE app.stripe_sync_runs ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME app.stripe_sync_runs_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE VIEW app.usage_drift WITH (security_invoker='true') AS
 WITH recorded AS (
         SELECT m.subject_id,
            ((m.finished_at AT TIME ZONE '00:00:00'::interval))::date AS day,
            count(*) AS messages,
            sum(m.input_tokens) AS input_tokens,
            sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
            sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
            sum(m.output_tokens) AS output_tokens,
            sum(m.cost) AS cost,
            sum(m.credits) AS credits
           FROM app.messages m
          GROUP BY m.subject_id, (((m.finished_at AT TIME ZONE '00:00:00'::interval))::date)
        )
 SELECT COALESCE(d.subject_id, r.subject_id) AS subject_id,
    COALESCE(d.day, r.day) AS day,
    d.messages AS kept_messages,
    r.messages AS recorded_messages,
    d.input_tokens AS kept_input_tokens,
    r.input_tokens AS recorded_input_tokens,
    d.cache_creation_input_tokens AS kept_cache_creation_input_tokens,
    r.cache_creation_input_tokens AS recorded_cache_creation_input_tokens,
    d.cache_read_input_tokens AS kept_cache_read_input_tokens,
    r.cache_read_input_tokens AS recorded_cache_read_input_tokens,
    d.output_tokens AS kept_output_tokens,
    r.output_tokens AS recorded_output_tokens,
    d.cost AS kept_cost,
    r.cost AS recorded_cost,
    d.credits AS kept_credits,
    r.credits AS recorded_credits
   FROM (app.usage_daily d
     FULL JOIN recorded r ON (((d.subject_id = r.subject_id) AND (d.day = r.day))))
  WHERE ((d.messages IS DISTINCT FROM r.messages) OR (d.input_tokens IS DISTINCT FROM r.input_tokens) OR (d.cache_creation_input_tokens IS DISTINCT FROM r.cache_creation_input_tokens) OR (d.cache_read_input_tokens IS DISTINCT FROM r.cache_read_input_tokens) OR (d.output_tokens IS DISTINCT FROM r.output_tokens) OR (d.cost IS DISTINCT FROM r.cost) OR (d.credits IS DISTINCT FROM r.credits));

COMMENT ON VIEW app.usage_drift IS 'Payers'' days for which usage_daily differs from messages; it should be empty.';

COMMENT ON COLUMN app.usage_drift.subject_id IS 'Who pays: a user or a fingerprint.';

COMMENT ON COLUMN app.usage_drift.day IS 'UTC day.';

COMMENT ON COLUMN app.usage_drift.kept_messages IS 'What usage_daily says; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_messages IS 'What messages add up to; NULL if there are none.';

COMMENT ON COLUMN app.usage_drift.kept_input_tokens IS 'What usage_daily says; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_input_tokens IS 'What messages add up to; NULL if there are none.';

COMMENT ON COLUMN app.usage_drift.kept_cache_creation_input_tokens IS 'What usage_daily says; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_cache_creation_input_tokens IS 'What messages add up to; NULL if there are none.';

COMMENT ON COLUMN app.usage_drift.kept_cache_read_input_tokens IS 'What usage_daily says; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_cache_read_input_tokens IS 'What messages add up to; NULL if there are none.';

COMMENT ON COLUMN app.usage_drift.kept_output_tokens IS 'What usage_daily says; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_output_tokens IS 'What messages add up to; NULL if there are none.';

COMMENT ON COLUMN app.usage_drift.kept_cost IS 'What usage_daily says, in US dollars; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_cost IS 'What messages add up to, in US dollars; NULL if there are none.';

COMMENT ON COLUMN app.usage_drift.kept_credits IS 'What usage_daily says, in credits; NULL if it has no row.';

COMMENT ON COLUMN app.usage_drift.recorded_credits IS 'What messages add up to, in credits; NULL if there are none.';

CREATE TABLE public._yoyo_log (
    id character varying(36) NOT NULL,
    migration_hash character varying(64),
    migration_id character varying(255),
    operation character varying(10),
    username character varying(255),
    hostname character varying(255),
    comment character varying(255),
    created_at_utc timestamp without time zone
);

CREATE TABLE public._yoyo_migration (
    migration_hash character varying(64) NOT NULL,
    migration_id character varying(255),
    applied_at_utc timestamp without time zone
);

CREATE TABLE public._yoyo_version (
    version integer NOT NULL,
    installed_at_utc timestamp without time zone
);

CREATE TABLE public.pyapp_migration_checksums (
    migration_id text NOT NULL,
    applied_at timestamp without time zone NOT NULL,
    checksum text NOT NULL
);

COMMENT ON TABLE public.pyapp_migration_checksums IS 'SHA-256 of each applied migration''s text; applied_at is yoyo''s, and tells a row of an
earlier application. Written by pyapp db migrate and pyapp db check.';

CREATE TABLE public.yoyo_lock (
    locked integer DEFAULT 1 NOT NULL,
    ctime timestamp without time zone,
    pid integer NOT NULL
);

ALTER TABLE ONLY app.message_payloads ATTACH PARTITION app.message_payloads_202611 FOR VALUES FROM ('2026-11-01 00:00:00+00') TO ('2026-12-01 00:00:00+00');

ALTER TABLE ONLY app.message_payloads ATTACH PARTITION app.message_payloads_202612 FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00');

ALTER TABLE ONLY app.message_payloads ATTACH PARTITION app.message_payloads_202701 FOR VALUES FROM ('2027-01-01 00:00:00+00') TO ('2027-02-01 00:00:00+00');

ALTER TABLE ONLY app.message_payloads ATTACH PARTITION app.message_payloads_default DEFAULT;

INSERT INTO app.fingerprints VALUES
	('b977d048-8fe6-0ba2-7f01-392cfc686299', 'hash', 1000, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, '2026-11-27 03:40:41.183452+00'),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', 'hash', 1000, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, '2026-11-27 03:40:41.183452+00');

INSERT INTO app.message_payloads_202611 VALUES
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '90b4c251-f864-9a4f-9c86-d6d20ee6e9e9', '2026-11-26 10:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '50ed14a5-83bb-c9c3-9654-bf403f84530f', '2026-11-25 17:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', 'a163f342-33d0-32db-c5fd-45162b952961', '2026-11-25 00:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('0a791842-f52a-0acf-bb3a-783378c066b8', '8325148f-2e6d-dc91-7461-0567ede254bd', '2026-11-24 07:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('affec3b6-4cf9-0492-377a-8114c86fc093', '996ef23e-517d-7bfb-d29a-27b7c38fd92a', '2026-11-23 14:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', 'e47aee44-fd68-5a86-a3ef-a75730b8f324', '2026-11-22 21:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', '7e129e43-7037-54be-6a89-314d78f6eb23', '2026-11-22 04:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '6fd0ff8a-a1ed-1aa5-f247-54706e598085', '2026-11-21 11:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '99f72d2d-e922-c1f1-4b0b-a5e145f06544', '2026-11-20 18:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', 'fac9dfb7-df0b-af13-810d-c0ee8d6c3929', '2026-11-20 01:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', 'e2ef9407-d91d-e2cc-75bd-3ded8622d647', '2026-11-19 08:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('0a791842-f52a-0acf-bb3a-783378c066b8', '5f418ab0-bfef-3358-cebb-4da347c09ef1', '2026-11-18 15:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('affec3b6-4cf9-0492-377a-8114c86fc093', 'a80a4cf9-f8ec-99b9-d292-e193efaec5a2', '2026-11-17 22:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('b977d048-8fe6-0ba2-7f01-392cfc686299', '59d4b614-19f7-8262-e68f-04d51b987e06', '2026-11-17 05:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('7668f673-d566-9995-175e-f91b5d171945', 'fcb6ef11-6749-f4ce-ce0b-85e1c21f64b1', '2026-11-16 12:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', 'fea36dcb-5890-895c-1ee2-e6fdfe68fb5f', '2026-11-15 19:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '2df29fe8-865c-0ea4-3790-4a5a728fbc8f', '2026-11-15 02:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '61abe937-0c13-a1a8-83be-31749cc9386c', '2026-11-14 09:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', '7549e69f-3925-454c-3450-7bd13563ab60', '2026-11-13 16:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('0a791842-f52a-0acf-bb3a-783378c066b8', 'b0f9c3de-abef-6db8-8227-bf705391160c', '2026-11-12 23:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', '5b818adb-76b7-ec68-f7d2-ac033c17cf08', '2026-11-12 06:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', 'a1698fc2-5635-dd73-506f-3041a2644316', '2026-11-11 13:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('7668f673-d566-9995-175e-f91b5d171945', 'c413cdc9-4c59-8c1a-9915-34de30d47efa', '2026-11-10 20:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '74e0417a-ad46-b4f5-d3c3-654b206ec51e', '2026-11-10 03:40:41.183452+00', '[{"role": "user"}]', NULL, DEFAULT);

INSERT INTO app.messages VALUES
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '90b4c251-f864-9a4f-9c86-d6d20ee6e9e9', '7e58d63b-6019-7ceb-55a1-c487989a3720', NULL, '2026-11-26 10:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 1, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000001, 0.00012),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '50ed14a5-83bb-c9c3-9654-bf403f84530f', '92877af7-0a45-fd6a-2ed7-fe81e1236b78', NULL, '2026-11-25 17:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 2, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000002, 0.00024),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', 'a163f342-33d0-32db-c5fd-45162b952961', '3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', NULL, '2026-11-25 00:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 3, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000003, 0.00036),
	('0a791842-f52a-0acf-bb3a-783378c066b8', '8325148f-2e6d-dc91-7461-0567ede254bd', '0a791842-f52a-0acf-bb3a-783378c066b8', NULL, '2026-11-24 07:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 4, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000004, 0.00048),
	('affec3b6-4cf9-0492-377a-8114c86fc093', '996ef23e-517d-7bfb-d29a-27b7c38fd92a', 'affec3b6-4cf9-0492-377a-8114c86fc093', NULL, '2026-11-23 14:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 5, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000005, 0.00060),
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', 'e47aee44-fd68-5a86-a3ef-a75730b8f324', '3e0469fb-1349-91f8-f75a-2760e409c6ed', NULL, '2026-11-22 21:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 6, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000006, 0.00072),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', '7e129e43-7037-54be-6a89-314d78f6eb23', NULL, '5b4237eb-37d0-6e18-9f04-9592efb69ab3', '2026-11-22 04:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 7, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000007, 0.00084),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '6fd0ff8a-a1ed-1aa5-f247-54706e598085', '24c9e15e-52af-c47c-225b-757e7bee1f9d', NULL, '2026-11-21 11:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 8, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000008, 0.00096),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '99f72d2d-e922-c1f1-4b0b-a5e145f06544', '7e58d63b-6019-7ceb-55a1-c487989a3720', NULL, '2026-11-20 18:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 9, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000009, 0.00108),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', 'fac9dfb7-df0b-af13-810d-c0ee8d6c3929', '92877af7-0a45-fd6a-2ed7-fe81e1236b78', NULL, '2026-11-20 01:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 10, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000010, 0.00120),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', 'e2ef9407-d91d-e2cc-75bd-3ded8622d647', '3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', NULL, '2026-11-19 08:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 11, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000011, 0.00132),
	('0a791842-f52a-0acf-bb3a-783378c066b8', '5f418ab0-bfef-3358-cebb-4da347c09ef1', '0a791842-f52a-0acf-bb3a-783378c066b8', NULL, '2026-11-18 15:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 12, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000012, 0.00144),
	('affec3b6-4cf9-0492-377a-8114c86fc093', 'a80a4cf9-f8ec-99b9-d292-e193efaec5a2', 'affec3b6-4cf9-0492-377a-8114c86fc093', NULL, '2026-11-17 22:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 13, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000013, 0.00156),
	('b977d048-8fe6-0ba2-7f01-392cfc686299', '59d4b614-19f7-8262-e68f-04d51b987e06', NULL, 'b977d048-8fe6-0ba2-7f01-392cfc686299', '2026-11-17 05:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 14, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000014, 0.00168),
	('7668f673-d566-9995-175e-f91b5d171945', 'fcb6ef11-6749-f4ce-ce0b-85e1c21f64b1', '7668f673-d566-9995-175e-f91b5d171945', NULL, '2026-11-16 12:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 15, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000015, 0.00180),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', 'fea36dcb-5890-895c-1ee2-e6fdfe68fb5f', '24c9e15e-52af-c47c-225b-757e7bee1f9d', NULL, '2026-11-15 19:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 16, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000016, 0.00192),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '2df29fe8-865c-0ea4-3790-4a5a728fbc8f', '7e58d63b-6019-7ceb-55a1-c487989a3720', NULL, '2026-11-15 02:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 17, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000017, 0.00204),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '61abe937-0c13-a1a8-83be-31749cc9386c', '92877af7-0a45-fd6a-2ed7-fe81e1236b78', NULL, '2026-11-14 09:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 18, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000018, 0.00216),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', '7549e69f-3925-454c-3450-7bd13563ab60', '3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', NULL, '2026-11-13 16:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 19, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000019, 0.00228),
	('0a791842-f52a-0acf-bb3a-783378c066b8', 'b0f9c3de-abef-6db8-8227-bf705391160c', '0a791842-f52a-0acf-bb3a-783378c066b8', NULL, '2026-11-12 23:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 20, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000020, 0.00240),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', '5b818adb-76b7-ec68-f7d2-ac033c17cf08', NULL, '5b4237eb-37d0-6e18-9f04-9592efb69ab3', '2026-11-12 06:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 21, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000021, 0.00252),
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', 'a1698fc2-5635-dd73-506f-3041a2644316', '3e0469fb-1349-91f8-f75a-2760e409c6ed', NULL, '2026-11-11 13:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 22, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000022, 0.00264),
	('7668f673-d566-9995-175e-f91b5d171945', 'c413cdc9-4c59-8c1a-9915-34de30d47efa', '7668f673-d566-9995-175e-f91b5d171945', NULL, '2026-11-10 20:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 23, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000023, 0.00276),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '74e0417a-ad46-b4f5-d3c3-654b206ec51e', '24c9e15e-52af-c47c-225b-757e7bee1f9d', NULL, '2026-11-10 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', DEFAULT, 24, 1, 2, 3, NULL, 'm', NULL, NULL, 0.000024, 0.00288);

INSERT INTO app.plans VALUES
	('anonymous', NULL, 1000),
	('free', NULL, 2500),
	('paid', 'price_1', 50000),
	('team', NULL, 1000000);

INSERT INTO app.referrals VALUES
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', 'completed', 504, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00'),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '0a791842-f52a-0acf-bb3a-783378c066b8', 'completed', 505, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00'),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', 'affec3b6-4cf9-0492-377a-8114c86fc093', 'completed', 506, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00'),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '3e0469fb-1349-91f8-f75a-2760e409c6ed', 'pending', 100, '2026-11-27 03:40:41.183452+00', NULL);

INSERT INTO app.sessions VALUES
	('\xdf3e6b0bb66ceaadca4f84cbc371fd66e04d20fe51fc414da8d1b84d31d178de', '24c9e15e-52af-c47c-225b-757e7bee1f9d', NULL, '2026-11-27 03:40:41.183452+00', 'infinity'),
	('\xd8cc7aed3851ac3338fcc15df3b6807b89125837f77a75b9ecb13ed2afe3b49f', '7e58d63b-6019-7ceb-55a1-c487989a3720', NULL, '2026-11-27 03:40:41.183452+00', 'infinity');

INSERT INTO app.stripe_customers VALUES
	('cus_1', '24c9e15e-52af-c47c-225b-757e7bee1f9d', false, NULL, '2026-11-27 03:40:41.183452+00', false);

INSERT INTO app.stripe_events VALUES
	('evt_1', 'invoice.paid', NULL, '2026-11-27 03:40:41.183452+00', '{"a": 1}', 'received', 0, NULL, '2026-11-27 03:40:41.183452+00', NULL);

INSERT INTO app.stripe_subscriptions VALUES
	('sub_1', 'cus_1', NULL, 'active', NULL, NULL, NULL, NULL, false, NULL, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', false);

INSERT INTO app.stripe_sync_runs OVERRIDING SYSTEM VALUE VALUES
	(1, 'reconcile', false, '2026-11-27 03:40:41.183452+00', NULL, NULL, '{}', 'running', NULL),
	(2, 'replay', false, '2026-11-27 03:40:41.183452+00', NULL, NULL, '{}', 'running', NULL);

INSERT INTO app.usage_daily VALUES
	('0a791842-f52a-0acf-bb3a-783378c066b8', '2026-11-12', 1, 20, 1, 2, 3, DEFAULT, 0.000020, 0.00240),
	('0a791842-f52a-0acf-bb3a-783378c066b8', '2026-11-18', 1, 12, 1, 2, 3, DEFAULT, 0.000012, 0.00144),
	('0a791842-f52a-0acf-bb3a-783378c066b8', '2026-11-24', 1, 4, 1, 2, 3, DEFAULT, 0.000004, 0.00048),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '2026-11-10', 1, 24, 1, 2, 3, DEFAULT, 0.000024, 0.00288),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '2026-11-15', 1, 16, 1, 2, 3, DEFAULT, 0.000016, 0.00192),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', '2026-11-21', 1, 8, 1, 2, 3, DEFAULT, 0.000008, 0.00096),
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', '2026-11-11', 1, 22, 1, 2, 3, DEFAULT, 0.000022, 0.00264),
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', '2026-11-22', 1, 6, 1, 2, 3, DEFAULT, 0.000006, 0.00072),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', '2026-11-13', 1, 19, 1, 2, 3, DEFAULT, 0.000019, 0.00228),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', '2026-11-19', 1, 11, 1, 2, 3, DEFAULT, 0.000011, 0.00132),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', '2026-11-25', 1, 3, 1, 2, 3, DEFAULT, 0.000003, 0.00036),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', '2026-11-12', 1, 21, 1, 2, 3, DEFAULT, 0.000021, 0.00252),
	('5b4237eb-37d0-6e18-9f04-9592efb69ab3', '2026-11-22', 1, 7, 1, 2, 3, DEFAULT, 0.000007, 0.00084),
	('7668f673-d566-9995-175e-f91b5d171945', '2026-11-10', 1, 23, 1, 2, 3, DEFAULT, 0.000023, 0.00276),
	('7668f673-d566-9995-175e-f91b5d171945', '2026-11-16', 1, 15, 1, 2, 3, DEFAULT, 0.000015, 0.00180),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '2026-11-15', 1, 17, 1, 2, 3, DEFAULT, 0.000017, 0.00204),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '2026-11-20', 1, 9, 1, 2, 3, DEFAULT, 0.000009, 0.00108),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', '2026-11-26', 1, 1, 1, 2, 3, DEFAULT, 0.000001, 0.00012),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '2026-11-14', 1, 18, 1, 2, 3, DEFAULT, 0.000018, 0.00216),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '2026-11-20', 1, 10, 1, 2, 3, DEFAULT, 0.000010, 0.00120),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', '2026-11-25', 1, 2, 1, 2, 3, DEFAULT, 0.000002, 0.00024),
	('affec3b6-4cf9-0492-377a-8114c86fc093', '2026-11-17', 1, 13, 1, 2, 3, DEFAULT, 0.000013, 0.00156),
	('affec3b6-4cf9-0492-377a-8114c86fc093', '2026-11-23', 1, 5, 1, 2, 3, DEFAULT, 0.000005, 0.00060),
	('b977d048-8fe6-0ba2-7f01-392cfc686299', '2026-11-17', 1, 14, 1, 2, 3, DEFAULT, 0.000014, 0.00168);

INSERT INTO app.users VALUES
	('3e0469fb-1349-91f8-f75a-2760e409c6ed', 'user7@example.com', NULL, NULL, NULL, 2500, 0, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-55d9f9a7-1861-4fb1-9817-c2aa2e46426e', 100, 0, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('7668f673-d566-9995-175e-f91b5d171945', 'user8@example.com', NULL, NULL, NULL, 2500, 0, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-4f202732-c661-4598-8e0d-1c3d4876ebd2', 100, 0, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('24c9e15e-52af-c47c-225b-757e7bee1f9d', 'user1@example.com', NULL, NULL, NULL, 2500, 506, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-9cd0a7f3-5fb8-4a61-85fc-556963dadb0f', 100, 1, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('92877af7-0a45-fd6a-2ed7-fe81e1236b78', 'user3@example.com', NULL, NULL, NULL, 2500, 505, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-a1bf03b6-229d-4942-b850-abf6b16ae5b8', 100, 1, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('3f02ebe3-d792-9b09-1e3d-8ccfde2f3bc6', 'user4@example.com', NULL, NULL, NULL, 2500, 504, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-d9909cf9-8bd8-4d8f-800a-3999f45da29f', 100, 0, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('0a791842-f52a-0acf-bb3a-783378c066b8', 'user5@example.com', NULL, NULL, NULL, 2500, 505, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-2113a22e-e118-4594-9f0d-00942af6f91b', 100, 0, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('affec3b6-4cf9-0492-377a-8114c86fc093', 'user6@example.com', NULL, NULL, NULL, 2500, 506, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-f6c068ab-1ffc-4535-9054-341ee977da16', 100, 0, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL),
	('7e58d63b-6019-7ceb-55a1-c487989a3720', 'user2@example.com', NULL, NULL, NULL, 2500, 1504, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-12-27 03:40:41.183452+00', DEFAULT, 'ref-ab6362b4-9423-497c-9ff2-e4e1becc5551', 100, 1, NULL, NULL, NULL, NULL, DEFAULT, '2026-11-27 03:40:41.183452+00', '2026-11-27 03:40:41.183452+00', NULL);

INSERT INTO public._yoyo_log VALUES
	('227b0cf4-d206-4947-ae59-2e7e0fe55689', '2341d5ed47131538507c345b9cbf7c6a4536c388ca4d9dbd2e0342a494bc1d7d', '0001_create_plans', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:40.842818'),
	('5e00ff26-e655-48e6-888d-7e207116385f', '4b236998a52d8d277eccd32114be2049f265552ab9577484403a72e6d4adf646', '0002_create_accounts', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:40.863073'),
	('c52991ab-7654-4aa0-a16c-c44c587794d9', '8d00f7002eedadc81fcfc2f1c52c6164e4e90983a945916e3f4874c14b4b5b28', '0003_create_messages', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:40.894453'),
	('95671cf3-e891-4b70-b277-0a4cc8e2bdc6', '4486000462b3435f4fa0bbed73bc7f13721e86206e2a65201ebc0807723624b6', '0004_create_referrals', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:40.93907'),
	('9eebd387-e9a1-4b97-a23d-d4b36530fa9c', '1dd9f9c44d5d7606ca119255158bdf7fd2256954bc4d720753c9eb68702a12a6', '0005_create_stripe_mirror', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:40.952128'),
	('be4626fe-c40e-4514-b380-97454964d276', '61c102a249951cdbe2d613c6b3ae89e89f32787fc0c4ae416eac56f64897c298', '0006_create_stripe_rules', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:40.984935'),
	('2abed77b-1ccf-477c-8bc4-85a099b9effb', '5d21f25caf706ab8337e0b360afbf53b0b1f7573a14c66bbc398dcc62ba28212', '0007_widen_stripe_ties', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.001685'),
	('f6116b85-287b-4d73-b0af-640e11cd40fa', '1444aea9217ff04f8b0cdde6f2518e054af9baf5a84590d388e3a60484adab4f', '0008_create_messages_recorded_at_idx', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.010321'),
	('a47a7390-63ed-442a-a21c-38c74908f8ac', '2baf903d5808b7fb13e8ab6aaa953c7ccb2f40e98128b52d5bbce1540551ec91', '0009_speed_up_quota_check', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.012962'),
	('7ace4080-8136-46a0-93fb-d1d407503c55', '29f06ae5b8382857b4602082c1cc99dc202b7d1e9d2e42c807f37fee2cdf71c1', '0010_sync_stripe_by_page', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.028529'),
	('00726ceb-24ab-4bf8-8d5a-7698277c03a4', 'bdcbddd63b5fbd3feb71470ebb7439a01ac48f3878ce29cb527b0ff4dca4fd33', '0011_match_email_after_claims', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.047978'),
	('d559776c-89c8-44e3-bbd1-5da0c00f20b1', 'df555ef5823f87d73704a73ce16efac005c16aa0f5b1fd32c1adc5dbf8690f5b', '0012_follow_live_customers', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.057573'),
	('2de5aa76-2b4f-4041-a2d1-931c8c7b4389', '8915f45f3d91cae5b8f9bfd07f50f42690608293bdef204033ba267ea932e1cb', '0013_fix_search_paths', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.066975'),
	('3d50e38f-e7f9-4401-9040-900f0bcd2d5d', '370e3e642caa99364881d5f450d9e062645484c76ed2eb542e8e4b44a288df09', '0014_refuse_times_ahead', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.084183'),
	('0cefeb58-a966-44aa-a993-00dbf54ec405', '09b1653b7c822d3a8eed1e2c0b0e0d9236f1eec3e3188f33ca73ae827f54d62d', '0015_erase_payloads_everywhere', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.090506'),
	('85aee18b-49c6-4cf3-b185-07d2f6764b7f', '1dd87e9e7e7ccf3c090d5baf27c48a276c30217afaa8e2603bff59b0ee733204', '0016_grant_referrals_once', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.096887'),
	('d0290229-4721-427f-827d-f1a201f8deeb', '542fd41d1743a34e073d225c91d4efa1094e5e16d62649167f7152b432b51ce4', '0017_repair_drift', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.104601'),
	('2ec1902b-b584-4ff9-ae92-1719450de0b0', '54d694e67afb4fd289f978c449c7298e55e558098ead201f03c569b6213350ac', '0018_validate_messages_finished_at_not_ahead_check', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.151476'),
	('444adeb1-156c-4d3c-9933-49805dc48422', '51d4a6a2f4121d962e6259fc8cdf1f56898cb40de43ecaff2b7b3e582953c352', '0019_create_messages_fingerprint_id_id_idx', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.157913'),
	('574d6cfd-f825-43e2-9a0b-702da91515fb', '4436384436527d59b9e1d349ffa46358a85caf2138c79d313343728be5707ef9', '0020_end_sessions_and_referrals', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.161044'),
	('7962e288-5d9d-43ca-b7a9-c30457271540', '28958f135375c9b0af21e01584184809a53383559a8c51956beecc791a62a071', '0021_drop_messages_fingerprint_id_idx', 'apply', 'ada', 'example', NULL, '2026-11-27 03:40:41.173962');

INSERT INTO public._yoyo_migration VALUES
	('2341d5ed47131538507c345b9cbf7c6a4536c388ca4d9dbd2e0342a494bc1d7d', '0001_create_plans', '2026-11-27 03:40:40.842105'),
	('4b236998a52d8d277eccd32114be2049f265552ab9577484403a72e6d4adf646', '0002_create_accounts', '2026-11-27 03:40:40.862772'),
	('8d00f7002eedadc81fcfc2f1c52c6164e4e90983a945916e3f4874c14b4b5b28', '0003_create_messages', '2026-11-27 03:40:40.893856'),
	('4486000462b3435f4fa0bbed73bc7f13721e86206e2a65201ebc0807723624b6', '0004_create_referrals', '2026-11-27 03:40:40.938727'),
	('1dd9f9c44d5d7606ca119255158bdf7fd2256954bc4d720753c9eb68702a12a6', '0005_create_stripe_mirror', '2026-11-27 03:40:40.951846'),
	('61c102a249951cdbe2d613c6b3ae89e89f32787fc0c4ae416eac56f64897c298', '0006_create_stripe_rules', '2026-11-27 03:40:40.98461'),
	('5d21f25caf706ab8337e0b360afbf53b0b1f7573a14c66bbc398dcc62ba28212', '0007_widen_stripe_ties', '2026-11-27 03:40:41.001392'),
	('1444aea9217ff04f8b0cdde6f2518e054af9baf5a84590d388e3a60484adab4f', '0008_create_messages_recorded_at_idx', '2026-11-27 03:40:41.009842'),
	('2baf903d5808b7fb13e8ab6aaa953c7ccb2f40e98128b52d5bbce1540551ec91', '0009_speed_up_quota_check', '2026-11-27 03:40:41.012716'),
	('29f06ae5b8382857b4602082c1cc99dc202b7d1e9d2e42c807f37fee2cdf71c1', '0010_sync_stripe_by_page', '2026-11-27 03:40:41.028286'),
	('bdcbddd63b5fbd3feb71470ebb7439a01ac48f3878ce29cb527b0ff4dca4fd33', '0011_match_email_after_claims', '2026-11-27 03:40:41.047717'),
	('df555ef5823f87d73704a73ce16efac005c16aa0f5b1fd32c1adc5dbf8690f5b', '0012_follow_live_customers', '2026-11-27 03:40:41.057031'),
	('8915f45f3d91cae5b8f9bfd07f50f42690608293bdef204033ba267ea932e1cb', '0013_fix_search_paths', '2026-11-27 03:40:41.066716'),
	('370e3e642caa99364881d5f450d9e062645484c76ed2eb542e8e4b44a288df09', '0014_refuse_times_ahead', '2026-11-27 03:40:41.08392'),
	('09b1653b7c822d3a8eed1e2c0b0e0d9236f1eec3e3188f33ca73ae827f54d62d', '0015_erase_payloads_everywhere', '2026-11-27 03:40:41.090257'),
	('1dd87e9e7e7ccf3c090d5baf27c48a276c30217afaa8e2603bff59b0ee733204', '0016_grant_referrals_once', '2026-11-27 03:40:41.096637'),
	('542fd41d1743a34e073d225c91d4efa1094e5e16d62649167f7152b432b51ce4', '0017_repair_drift', '2026-11-27 03:40:41.10436'),
	('54d694e67afb4fd289f978c449c7298e55e558098ead201f03c569b6213350ac', '0018_validate_messages_finished_at_not_ahead_check', '2026-11-27 03:40:41.151152'),
	('51d4a6a2f4121d962e6259fc8cdf1f56898cb40de43ecaff2b7b3e582953c352', '0019_create_messages_fingerprint_id_id_idx', '2026-11-27 03:40:41.15764'),
	('4436384436527d59b9e1d349ffa46358a85caf2138c79d313343728be5707ef9', '0020_end_sessions_and_referrals', '2026-11-27 03:40:41.160787'),
	('28958f135375c9b0af21e01584184809a53383559a8c51956beecc791a62a071', '0021_drop_messages_fingerprint_id_idx', '2026-11-27 03:40:41.173688');

INSERT INTO public._yoyo_version VALUES
	(2, '2026-11-27 03:40:40.835473');

INSERT INTO public.pyapp_migration_checksums VALUES
	('0001_create_plans', '2026-11-27 03:40:40.842105', 'd5ba73dd317718ed6355bbd1f59a400bd2b720c1b8460a3b58ef227f809349f9'),
	('0002_create_accounts', '2026-11-27 03:40:40.862772', '1954363087bb002ac8433e334e53e23d920bf6286047d8fa89d89e06841dd449'),
	('0003_create_messages', '2026-11-27 03:40:40.893856', '45618daa7ae336327ee2d78bf3bbe84ced0aff11e55c42b95a1e99e04fb253df'),
	('0004_create_referrals', '2026-11-27 03:40:40.938727', '2cb8aa9df27857d69ebfcd26b68ec44948ece371b318dc9f41bf55be877fc780'),
	('0005_create_stripe_mirror', '2026-11-27 03:40:40.951846', '21a5dada3a2e31d7a9382a3b482d1fbc48d2f6a4a00b2cc2a6097ad0c2c84d42'),
	('0006_create_stripe_rules', '2026-11-27 03:40:40.98461', '3f95ef8aac5f4da411c14ef74e7eda8e0cf3bc28b317e8aed8750244b2e32cdb'),
	('0007_widen_stripe_ties', '2026-11-27 03:40:41.001392', '6c737a57511aa35849f5fa244b796696768ddce1dd1a038504cb79ae4004bb33'),
	('0008_create_messages_recorded_at_idx', '2026-11-27 03:40:41.009842', 'daa4ce2b6aa4e40586e99316a8a21c65d017eff573b9013d9fde1250b63dc22a'),
	('0009_speed_up_quota_check', '2026-11-27 03:40:41.012716', '18e78d1c83c7bb22099d2ae7c5b64d56b03be043d518dd40a67e1a396fd11ad6'),
	('0010_sync_stripe_by_page', '2026-11-27 03:40:41.028286', 'd217f72bc233216577c3b24bed2e0c068377e466b95c6589752f59094db497cd'),
	('0011_match_email_after_claims', '2026-11-27 03:40:41.047717', '9ce174b9170d9b64b356cbf4717d6951477d63aa12d0d79135bca1aba4a513cd'),
	('0012_follow_live_customers', '2026-11-27 03:40:41.057031', 'be6d2d48e49a5c254546ec541f36f030e39e4b467cda6f01d356353069fb4922'),
	('0013_fix_search_paths', '2026-11-27 03:40:41.066716', 'f59fd2dd129757abdf97103600eef242c21351b9bf22f3e6b6ba7bdd9b9d3ce2'),
	('0014_refuse_times_ahead', '2026-11-27 03:40:41.08392', 'fcb0d9a31942b87403fc9ff257dd1a0e5e1b4219760e5d917baf0cbfe29a1cca'),
	('0015_erase_payloads_everywhere', '2026-11-27 03:40:41.090257', '7c71668d58d1a8fdb57e9665077e1ed4576ebcd6fd6cff22df3dc604feb2a475'),
	('0016_grant_referrals_once', '2026-11-27 03:40:41.096637', 'ecbe60d6426ba90efc27ee4434f376fd4787dc49e9fc46246ff37367df2954b2'),
	('0017_repair_drift', '2026-11-27 03:40:41.10436', '1a53b5a15a59e03fc732e98af1cd04d0c4b3e3b2b5d543268104011244074692'),
	('0018_validate_messages_finished_at_not_ahead_check', '2026-11-27 03:40:41.151152', 'd25e2eba738c0ef307d1b71b630bb08ecefbaa4732f8082728d55a39704ffd2a'),
	('0019_create_messages_fingerprint_id_id_idx', '2026-11-27 03:40:41.15764', 'ff2db7984f80dee3ceda67a20c4f5bfa72cd440121bb5986ccce27cb455a0079'),
	('0020_end_sessions_and_referrals', '2026-11-27 03:40:41.160787', 'b3013eaab9c5c4900749d238e3af207805ace216021bbbbcf9155d60781cf77f'),
	('0021_drop_messages_fingerprint_id_idx', '2026-11-27 03:40:41.173688', '9066234312e159544527781597389dd1c257d0478391a3815ffed8f7c4fcb478');

SELECT pg_catalog.setval('app.stripe_sync_runs_id_seq', 2, true);

ALTER TABLE ONLY app.fingerprints
    ADD CONSTRAINT fingerprints_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.message_payloads
    ADD CONSTRAINT message_payloads_pkey PRIMARY KEY (subject_id, message_id, finished_at);

ALTER TABLE ONLY app.message_payloads_202611
    ADD CONSTRAINT message_payloads_202611_pkey PRIMARY KEY (subject_id, message_id, finished_at);

ALTER TABLE ONLY app.message_payloads_202612
    ADD CONSTRAINT message_payloads_202612_pkey PRIMARY KEY (subject_id, message_id, finished_at);

ALTER TABLE ONLY app.message_payloads_202701
    ADD CONSTRAINT message_payloads_202701_pkey PRIMARY KEY (subject_id, message_id, finished_at);

ALTER TABLE ONLY app.message_payloads_default
    ADD CONSTRAINT message_payloads_default_pkey PRIMARY KEY (subject_id, message_id, finished_at);

ALTER TABLE ONLY app.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (subject_id, id);

ALTER TABLE ONLY app.plans
    ADD CONSTRAINT plans_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.plans
    ADD CONSTRAINT plans_stripe_price_id_key UNIQUE (stripe_price_id);

ALTER TABLE ONLY app.referrals
    ADD CONSTRAINT referrals_pkey PRIMARY KEY (referrer_id, referred_id);

ALTER TABLE ONLY app.referrals
    ADD CONSTRAINT referrals_referred_id_key UNIQUE (referred_id);

ALTER TABLE ONLY app.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (token_hash);

ALTER TABLE ONLY app.stripe_customers
    ADD CONSTRAINT stripe_customers_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.stripe_events
    ADD CONSTRAINT stripe_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.stripe_subscriptions
    ADD CONSTRAINT stripe_subscriptions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.stripe_sync_runs
    ADD CONSTRAINT stripe_sync_runs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.usage_daily
    ADD CONSTRAINT usage_daily_pkey PRIMARY KEY (subject_id, day) INCLUDE (credits);

ALTER TABLE ONLY app.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.users
    ADD CONSTRAINT users_referral_code_key UNIQUE (referral_code);

ALTER TABLE ONLY app.users
    ADD CONSTRAINT users_stripe_customer_id_key UNIQUE (stripe_customer_id);

ALTER TABLE ONLY public._yoyo_log
    ADD CONSTRAINT _yoyo_log_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public._yoyo_migration
    ADD CONSTRAINT _yoyo_migration_pkey PRIMARY KEY (migration_hash);

ALTER TABLE ONLY public._yoyo_version
    ADD CONSTRAINT _yoyo_version_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.pyapp_migration_checksums
    ADD CONSTRAINT pyapp_migration_checksums_pkey PRIMARY KEY (migration_id);

ALTER TABLE ONLY public.yoyo_lock
    ADD CONSTRAINT yoyo_lock_pkey PRIMARY KEY (locked);

CREATE INDEX messages_client_id_idx ON app.messages USING btree (client_id) WHERE (client_id IS NOT NULL);

CREATE INDEX messages_client_request_id_idx ON app.messages USING btree (client_request_id) WHERE (client_request_id IS NOT NULL);

CREATE UNIQUE INDEX messages_fingerprint_id_id_idx ON app.messages USING btree (fingerprint_id, id) WHERE (fingerprint_id IS NOT NULL);

CREATE INDEX messages_recorded_at_idx ON app.messages USING brin (recorded_at) WITH (autosummarize='on');

CREATE INDEX messages_subject_id_finished_at_idx ON app.messages USING btree (subject_id, finished_at) INCLUDE (credits);

CREATE INDEX messages_user_id_idx ON app.messages USING btree (user_id);

CREATE UNIQUE INDEX referrals_unordered_pair_idx ON app.referrals USING btree (LEAST(referrer_id, referred_id), GREATEST(referrer_id, referred_id));

CREATE INDEX sessions_expires_at_idx ON app.sessions USING btree (expires_at);

CREATE INDEX sessions_fingerprint_id_idx ON app.sessions USING btree (fingerprint_id);

CREATE INDEX sessions_user_id_idx ON app.sessions USING btree (user_id);

CREATE INDEX stripe_customers_created_at_idx ON app.stripe_customers USING btree (created_at, id);

CREATE INDEX stripe_customers_user_id_idx ON app.stripe_customers USING btree (user_id);

CREATE INDEX stripe_events_failed_idx ON app.stripe_events USING btree (event_created_at, id) WHERE (status = 'failed'::text);

CREATE INDEX stripe_events_payload_idx ON app.stripe_events USING btree (processed_at) WHERE (payload IS NOT NULL);

CREATE INDEX stripe_events_received_at_idx ON app.stripe_events USING btree (received_at, id);

CREATE INDEX stripe_subscriptions_created_at_idx ON app.stripe_subscriptions USING btree (created_at, id);

CREATE INDEX stripe_subscriptions_customer_id_idx ON app.stripe_subscriptions USING btree (customer_id);

CREATE INDEX stripe_subscriptions_user_id_idx ON app.stripe_subscriptions USING btree (user_id);

CREATE INDEX stripe_sync_runs_kind_idx ON app.stripe_sync_runs USING btree (kind, id);

CREATE UNIQUE INDEX users_lower_email_idx ON app.users USING btree (lower(email));

ALTER INDEX app.message_payloads_pkey ATTACH PARTITION app.message_payloads_202611_pkey;

ALTER INDEX app.message_payloads_pkey ATTACH PARTITION app.message_payloads_202612_pkey;

ALTER INDEX app.message_payloads_pkey ATTACH PARTITION app.message_payloads_202701_pkey;

ALTER INDEX app.message_payloads_pkey ATTACH PARTITION app.message_payloads_default_pkey;

CREATE TRIGGER fingerprints_refuse_user_id BEFORE INSERT OR UPDATE OF id ON app.fingerprints FOR EACH ROW EXECUTE FUNCTION app.refuse_user_id();

CREATE TRIGGER messages_add_usage AFTER INSERT ON app.messages REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION app.add_usage();

CREATE TRIGGER messages_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON app.messages FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change('messages are append-only');

CREATE TRIGGER referrals_completed_is_final BEFORE DELETE OR UPDATE ON app.referrals FOR EACH ROW WHEN ((old.status = 'completed'::text)) EXECUTE FUNCTION app.refuse_change('a completed referral is final');

CREATE TRIGGER referrals_grant_on_insert AFTER INSERT ON app.referrals REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION app.grant_referral_credits();

CREATE TRIGGER referrals_grant_on_update AFTER UPDATE ON app.referrals REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION app.grant_referral_credits();

CREATE TRIGGER referrals_no_truncate BEFORE TRUNCATE ON app.referrals FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change('a completed referral is final');

CREATE TRIGGER referrals_set_completed_at BEFORE INSERT OR UPDATE ON app.referrals FOR EACH ROW WHEN (((new.status = 'completed'::text) AND (new.completed_at IS NULL))) EXECUTE FUNCTION app.set_completed_at();

CREATE TRIGGER stripe_customers_newer_wins BEFORE UPDATE ON app.stripe_customers FOR EACH ROW WHEN ((new.as_of < old.as_of)) EXECUTE FUNCTION app.refuse_change('a newer state is known');

CREATE TRIGGER stripe_subscriptions_newer_wins BEFORE UPDATE ON app.stripe_subscriptions FOR EACH ROW WHEN ((new.as_of < old.as_of)) EXECUTE FUNCTION app.refuse_change('a newer state is known');

CREATE TRIGGER usage_daily_kept_by_trigger BEFORE INSERT OR DELETE OR UPDATE ON app.usage_daily FOR EACH STATEMENT WHEN (((pg_trigger_depth() = 0) AND (current_setting('app.is_repairing'::text, true) IS DISTINCT FROM 'on'::text))) EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');

CREATE TRIGGER usage_daily_no_truncate BEFORE TRUNCATE ON app.usage_daily FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');

CREATE TRIGGER users_end_unproved_sessions AFTER UPDATE OF email, email_verified_at ON app.users FOR EACH ROW WHEN (((new.email_verified_at IS NOT NULL) AND ((old.email_verified_at IS NULL) OR (lower(new.email) IS DISTINCT FROM lower(old.email))))) EXECUTE FUNCTION app.end_unproved_sessions();

CREATE TRIGGER users_set_updated_at BEFORE UPDATE ON app.users FOR EACH ROW EXECUTE FUNCTION app.set_updated_at();

ALTER TABLE app.message_payloads
    ADD CONSTRAINT message_payloads_message_id_fkey FOREIGN KEY (subject_id, message_id) REFERENCES app.messages(subject_id, id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.messages
    ADD CONSTRAINT messages_fingerprint_id_fkey FOREIGN KEY (fingerprint_id) REFERENCES app.fingerprints(id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.messages
    ADD CONSTRAINT messages_user_id_fkey FOREIGN KEY (user_id) REFERENCES app.users(id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.referrals
    ADD CONSTRAINT referrals_referred_id_fkey FOREIGN KEY (referred_id) REFERENCES app.users(id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.referrals
    ADD CONSTRAINT referrals_referrer_id_fkey FOREIGN KEY (referrer_id) REFERENCES app.users(id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.sessions
    ADD CONSTRAINT sessions_fingerprint_id_fkey FOREIGN KEY (fingerprint_id) REFERENCES app.fingerprints(id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES app.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY app.stripe_customers
    ADD CONSTRAINT stripe_customers_user_id_fkey FOREIGN KEY (user_id) REFERENCES app.users(id) ON DELETE RESTRICT;

ALTER TABLE ONLY app.stripe_subscriptions
    ADD CONSTRAINT stripe_subscriptions_user_id_fkey FOREIGN KEY (user_id) REFERENCES app.users(id) ON DELETE RESTRICT;

REVOKE ALL ON FUNCTION app.add_usage() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.anonymize_user(user_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.cancel_referral(referred uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.delete_expired_sessions(row_limit bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.delete_session(token_hash bytea) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.delete_user_sessions(user_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.end_unproved_sessions() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.grant_referral_credits() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.refuse_user_id() FROM PUBLIC;

--
-- PostgreSQL database dump complete
--
