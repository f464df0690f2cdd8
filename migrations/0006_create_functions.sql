-- The functions and views of sql/functions, one file after the other.

SET LOCAL lock_timeout = '5s';

-- Sums that differ from the rows that they count, and functions that repair them.

-- One statement and one snapshot: a message and its sum commit together, so that
-- concurrent writers never appear as differences.
CREATE OR REPLACE VIEW app.usage_drift WITH (security_invoker = TRUE) AS
WITH recorded AS (
    SELECT
        m.subject_id,
        (m.finished_at AT TIME ZONE interval '0')::date AS day,
        count(*) AS messages,
        sum(m.input_tokens) AS input_tokens,
        sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
        sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
        sum(m.output_tokens) AS output_tokens,
        sum(m.cost) AS cost,
        sum(m.credits) AS credits
    FROM app.messages AS m
    GROUP BY 1, 2
)

SELECT -- noqa: ST06
    COALESCE(d.subject_id, r.subject_id) AS subject_id,
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
FROM app.usage_daily AS d
FULL JOIN recorded AS r ON d.subject_id = r.subject_id AND d.day = r.day
-- Column by column, because pg_dump prints a row comparison of a view in another form
-- after a restore.
WHERE d.messages IS DISTINCT FROM r.messages
    OR d.input_tokens IS DISTINCT FROM r.input_tokens
    OR d.cache_creation_input_tokens IS DISTINCT FROM r.cache_creation_input_tokens
    OR d.cache_read_input_tokens IS DISTINCT FROM r.cache_read_input_tokens
    OR d.output_tokens IS DISTINCT FROM r.output_tokens
    OR d.cost IS DISTINCT FROM r.cost
    OR d.credits IS DISTINCT FROM r.credits;

COMMENT ON VIEW app.usage_drift IS
    'Days of payers for which usage_daily differs from messages; should be empty.';
COMMENT ON COLUMN app.usage_drift.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.usage_drift.day IS
    'UTC day.';
COMMENT ON COLUMN app.usage_drift.kept_messages IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_messages IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_input_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_input_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cache_creation_input_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cache_creation_input_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cache_read_input_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cache_read_input_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_output_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_output_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cost IS
    'Value in usage_daily, in US dollars; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cost IS
    'Sum of messages, in US dollars; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_credits IS
    'Value in usage_daily, in credits; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_credits IS
    'Sum of messages, in credits; NULL if there are none.';

CREATE OR REPLACE FUNCTION app.sum_usage_day(subject uuid, usage_day date)
RETURNS TABLE (
    messages bigint,
    input_tokens bigint,
    cache_creation_input_tokens bigint,
    cache_read_input_tokens bigint,
    output_tokens bigint,
    cost numeric,
    credits numeric
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        count(*) AS messages,
        sum(m.input_tokens) AS input_tokens,
        sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
        sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
        sum(m.output_tokens) AS output_tokens,
        sum(m.cost) AS cost,
        sum(m.credits) AS credits
    FROM app.messages AS m
    WHERE m.subject_id = sum_usage_day.subject
        AND m.finished_at
        >= sum_usage_day.usage_day::timestamp AT TIME ZONE interval '0'
        AND m.finished_at
        < (sum_usage_day.usage_day + 1)::timestamp AT TIME ZONE interval '0'
    HAVING count(*) > 0;
END;

COMMENT ON FUNCTION app.sum_usage_day(uuid, date) IS
    'Sums of the messages of a payer on a UTC day; no row if there are none.';

-- A writer inserts its messages, then updates the row of usage_daily and keeps the row
-- locked until it commits. So once this function holds that lock, its next statement
-- sees exactly the messages that the row should count: messages of a writer that waits
-- for the lock are not committed, and that writer adds them afterwards.
CREATE OR REPLACE FUNCTION app.repair_usage_day(subject uuid, usage_day date)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_changed boolean := FALSE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair needs READ COMMITTED, to see concurrent commits'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- Read by usage_daily_kept_by_trigger. It does not grant any privilege.
    PERFORM set_config('app.is_repairing', 'on', TRUE);
    LOOP
        PERFORM FROM app.usage_daily AS d
        WHERE d.subject_id = subject AND d.day = usage_day
        FOR UPDATE;
        EXIT WHEN FOUND;
        -- There is no row to lock. If a concurrent writer inserts it first, this INSERT
        -- waits for its commit and does nothing, and the loop locks that row.
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

COMMENT ON FUNCTION app.repair_usage_day(uuid, date) IS
    'Sets the usage_daily row of a payer and day from messages; true if it changed.';

CREATE OR REPLACE VIEW app.referral_drift WITH (security_invoker = TRUE) AS
WITH granted AS (
    SELECT
        party.user_id,
        sum(party.referrals) AS referrals,
        sum(r.credits) AS credits
    FROM app.referrals AS r
    CROSS JOIN LATERAL (
        VALUES (r.referrer_id, 1), (r.referred_id, 0)
    ) AS party (user_id, referrals)
    WHERE r.status = 'completed'
    GROUP BY 1
)

SELECT
    u.id AS user_id,
    u.referral_limit,
    u.referral_count AS kept_count,
    u.referral_credits AS kept_credits,
    COALESCE(g.referrals, 0) AS completed_count,
    COALESCE(g.credits, 0) AS granted_credits
FROM app.users AS u
LEFT JOIN granted AS g ON u.id = g.user_id
WHERE u.referral_count <> COALESCE(g.referrals, 0)
    OR u.referral_credits <> COALESCE(g.credits, 0);

COMMENT ON VIEW app.referral_drift IS
    'Users whose totals differ from referrals; extra credits may be manual grants.';
COMMENT ON COLUMN app.referral_drift.user_id IS
    'A user with different totals.';
COMMENT ON COLUMN app.referral_drift.referral_limit IS
    'Maximum of referral_count.';
COMMENT ON COLUMN app.referral_drift.kept_count IS
    'users.referral_count.';
COMMENT ON COLUMN app.referral_drift.completed_count IS
    'Number of completed referrals made by the user.';
COMMENT ON COLUMN app.referral_drift.kept_credits IS
    'users.referral_credits, in credits per period.';
COMMENT ON COLUMN app.referral_drift.granted_credits IS
    'Sum of the user''s completed referrals on either side, in credits per period.';

-- A writer of referrals locks both users until it commits, so that the statement after
-- the lock sees exactly the referrals that the totals should count.
CREATE OR REPLACE FUNCTION app.repair_referral_totals(repaired_id uuid)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair needs READ COMMITTED, to see concurrent commits'
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

COMMENT ON FUNCTION app.repair_referral_totals(uuid) IS
    'Sets referral_count, raises referral_credits, by referrals; true if changed.';

-- Recording one message.

-- Each statement names one table, so that Citus sends each to one shard. FOR KEY SHARE
-- waits for a concurrent anonymize_user, and anonymized_at is read after the wait: no
-- payload is stored for an anonymized user.
CREATE OR REPLACE FUNCTION app.record_message(
    INOUT id uuid,
    user_id uuid,
    fingerprint_id uuid,
    finished_at timestamptz,
    input_tokens integer,
    cache_creation_input_tokens integer,
    cache_read_input_tokens integer,
    output_tokens integer,
    latency_ms integer,
    model text,
    client_id text,
    client_request_id text,
    INOUT cost numeric,
    INOUT credits numeric,
    request jsonb,
    response jsonb,
    OUT is_user_known boolean,
    OUT is_fingerprint_known boolean,
    OUT is_ahead boolean,
    OUT is_new boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    erased_at timestamptz;
BEGIN
    is_user_known := TRUE;
    IF user_id IS NOT NULL THEN
        SELECT u.anonymized_at INTO erased_at
        FROM app.users AS u
        WHERE u.id = record_message.user_id
        FOR KEY SHARE;
        is_user_known := FOUND;
    END IF;

    is_fingerprint_known := TRUE;
    IF fingerprint_id IS NOT NULL THEN
        PERFORM FROM app.fingerprints AS f WHERE f.id = record_message.fingerprint_id;
        is_fingerprint_known := FOUND;
    END IF;

    -- The condition of messages_finished_at_not_ahead_check.
    is_ahead := finished_at AT TIME ZONE interval '0'
        > now() AT TIME ZONE interval '0' + interval '24 hours';

    is_new := FALSE;
    IF is_user_known AND is_fingerprint_known AND NOT is_ahead THEN
        -- No conflict target, because two unique indexes apply: one for the payer, one
        -- for the fingerprint.
        INSERT INTO app.messages (
            subject_id, id, user_id, fingerprint_id, finished_at,
            input_tokens, cache_creation_input_tokens, cache_read_input_tokens,
            output_tokens, latency_ms, model, client_id, client_request_id, cost,
            credits
        )
        VALUES (
            COALESCE(user_id, fingerprint_id), id, user_id, fingerprint_id, finished_at,
            input_tokens, cache_creation_input_tokens, cache_read_input_tokens,
            output_tokens, latency_ms, model, client_id, client_request_id, cost,
            credits
        )
        ON CONFLICT DO NOTHING;
        is_new := FOUND;
    END IF;

    IF NOT is_new THEN
        cost := 0;
        credits := 0;
    ELSIF erased_at IS NULL AND num_nonnulls(request, response) > 0 THEN
        INSERT INTO app.message_payloads (
            subject_id, message_id, finished_at, request, response
        )
        VALUES (
            COALESCE(user_id, fingerprint_id), id, finished_at, request, response
        );
    END IF;
END;
$$;

COMMENT ON FUNCTION app.record_message(
    uuid, uuid, uuid, timestamptz, integer, integer, integer, integer, integer, text,
    text, text, numeric, numeric, jsonb, jsonb
) IS
    'Records a message once, with its payload; reports what prevents it.';

-- Monthly partitions of message_payloads.

CREATE OR REPLACE FUNCTION app.create_payload_partitions(
    first_month date, months integer
)
RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    month date;
    lower_bound text;
    upper_bound text;
    partition text;
    created integer := 0;
    this_month timestamp := date_trunc('month', now() AT TIME ZONE interval '0');
BEGIN
    -- A query without a condition on finished_at locks and plans every partition. CASE
    -- keeps an extreme number of months from overflowing the interval.
    IF (
        CASE
            WHEN months BETWEEN 0 AND 120
                THEN first_month >= this_month - interval '120 months'
                    AND first_month < this_month + make_interval(months => 121 - months)
        END
    ) IS NOT TRUE THEN
        RAISE EXCEPTION
            'create_payload_partitions(%, %) is out of range: at most 120 months, from'
            ' 120 months ago to 120 months ahead', first_month, months
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
        -- An INSERT that is routed to the default partition before ATTACH would fail
        -- after it: lock writers out. Tables are locked in the order in which writers
        -- lock them, to avoid deadlocks.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE ONLY app.message_payloads IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE app.message_payloads_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'CREATE TABLE app.%I (LIKE app.message_payloads INCLUDING ALL)', partition
        );
        -- Move the rows of this month out of the default partition.
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

COMMENT ON FUNCTION app.create_payload_partitions(date, integer) IS
    'Creates monthly partitions from first_month on; returns the number created.';

CREATE OR REPLACE FUNCTION app.retire_payload_partition(keep_from date)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
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
        -- Lock messages first, as writers do, to avoid deadlocks. Dropping the foreign
        -- key needs ACCESS EXCLUSIVE on messages; without the foreign key, the table
        -- can be dropped later without a lock on messages.
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
$$;

COMMENT ON FUNCTION app.retire_payload_partition(date) IS
    'Detaches the oldest month that ends by keep_from as retired_payloads; its name.';

-- The period of a payer at a moment, and the credits used in it.

-- PL/pgSQL prevents inlining: quota queries rarely evaluate this arithmetic.
CREATE OR REPLACE FUNCTION app.get_period_end(anchor timestamptz, moment timestamptz)
RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN app.add_months(anchor, app.count_months(anchor, moment) + 1);
END;
$$;

COMMENT ON FUNCTION app.get_period_end(timestamptz, timestamptz) IS
    'First period boundary after the moment; boundaries are anchor + n months.';

CREATE OR REPLACE FUNCTION app.get_next_reset(
    anchor timestamptz, reset timestamptz, moment timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN reset > moment THEN reset
    WHEN reset IS NOT NULL THEN app.get_period_end(anchor, moment)
END;

COMMENT ON FUNCTION app.get_next_reset(timestamptz, timestamptz, timestamptz) IS
    'The reset if after the moment, else the next boundary; NULL if it never resets.';

CREATE OR REPLACE FUNCTION app.get_start_date(
    anchor timestamptz,
    reset timestamptz,
    moment timestamptz,
    known_start timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    -- An operator may move the reset: the period must not start after the moment.
    WHEN reset > moment AND known_start <= moment THEN known_start
    WHEN reset IS NULL THEN anchor
    ELSE app.get_period_start(anchor, moment)
END;

COMMENT ON FUNCTION app.get_start_date(
    timestamptz, timestamptz, timestamptz, timestamptz
) IS
    'Start of the period at the moment; known_start while that period lasts.';

-- sum_credits and get_period_usage return tables: only a table function is inlined with
-- its subqueries.
CREATE OR REPLACE FUNCTION app.sum_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS TABLE (credits_used numeric) LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT COALESCE(sum(
        CASE
            WHEN d.day >= sum_credits.period_start AT TIME ZONE interval '0'
                AND d.day + 1 <= sum_credits.period_end AT TIME ZONE interval '0'
                THEN d.credits
            ELSE (
                SELECT sum(m.credits)
                FROM app.messages AS m
                WHERE m.subject_id = d.subject_id
                    AND m.finished_at >= GREATEST(
                        d.day::timestamp AT TIME ZONE interval '0',
                        sum_credits.period_start
                    )
                    AND m.finished_at < LEAST(
                        (d.day + 1)::timestamp AT TIME ZONE interval '0',
                        sum_credits.period_end
                    )
            )
        END
    ), 0)
    FROM app.usage_daily AS d
    WHERE d.subject_id = sum_credits.subject
        AND d.day
        > (sum_credits.period_start AT TIME ZONE interval '0') - interval '1 day'
        AND d.day < sum_credits.period_end AT TIME ZONE interval '0';
END;

COMMENT ON FUNCTION app.sum_credits(uuid, timestamptz, timestamptz) IS
    'Exact credits of a payer in [start, end): daily sums, and messages of part days.';

-- LIMIT ALL is an optimization fence: the period is computed once.
CREATE OR REPLACE FUNCTION app.get_period_usage(
    subject uuid,
    anchor timestamptz,
    reset timestamptz,
    moment timestamptz,
    known_start timestamptz DEFAULT NULL
)
RETURNS TABLE (
    period_start timestamptz,
    end_date timestamptz,
    credits_used numeric
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        p.period_start,
        p.end_date,
        s.credits_used
    FROM (
        SELECT
            app.get_start_date(anchor, reset, moment, known_start) AS period_start,
            COALESCE(app.get_next_reset(anchor, reset, moment), moment) AS end_date
        LIMIT ALL -- noqa: AM09
    ) AS p
    CROSS JOIN LATERAL app.sum_credits(
        get_period_usage.subject, p.period_start, p.end_date
    ) AS s;
END;

COMMENT ON FUNCTION app.get_period_usage(
    uuid, timestamptz, timestamptz, timestamptz, timestamptz
) IS
    'Period [start, end) of a payer at the moment, and the exact credits used in it.';

-- Cancelling a referral.

-- SECURITY DEFINER, because the privilege DELETE would also allow callers to lock the
-- table in ACCESS EXCLUSIVE mode. Users are locked before referrals, as everywhere.
CREATE OR REPLACE FUNCTION app.cancel_referral(referred uuid)
RETURNS TABLE (
    referrer_id uuid,
    referred_id uuid,
    status text,
    credits numeric,
    created_at timestamptz,
    completed_at timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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

COMMENT ON FUNCTION app.cancel_referral(uuid) IS
    'Deletes the pending referral of a referred user; no row if none is pending.';

REVOKE EXECUTE ON FUNCTION app.cancel_referral(uuid) FROM public;

-- Deleting sessions. SECURITY DEFINER, because the privilege DELETE would also allow
-- callers to lock the table in ACCESS EXCLUSIVE mode.

CREATE OR REPLACE FUNCTION app.delete_session(token_hash bytea)
RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    DELETE FROM app.sessions AS s
    WHERE s.token_hash = delete_session.token_hash
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_session(bytea) IS
    'Deletes a session by the hash of its token; returns the user''s id, or no row.';

REVOKE EXECUTE ON FUNCTION app.delete_session(bytea) FROM public;

CREATE OR REPLACE FUNCTION app.delete_user_sessions(user_id uuid)
RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    DELETE FROM app.sessions AS s
    WHERE s.user_id = delete_user_sessions.user_id
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_user_sessions(uuid) IS
    'Deletes all sessions of a user; returns the user''s id once per session.';

REVOKE EXECUTE ON FUNCTION app.delete_user_sessions(uuid) FROM public;

CREATE OR REPLACE FUNCTION app.delete_expired_sessions(row_limit bigint)
RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
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

COMMENT ON FUNCTION app.delete_expired_sessions(bigint) IS
    'Deletes up to row_limit expired sessions, oldest first; returns users'' ids.';

REVOKE EXECUTE ON FUNCTION app.delete_expired_sessions(bigint) FROM public;

CREATE OR REPLACE FUNCTION app.lock_stripe_customer(customer_id text)
RETURNS void LANGUAGE sql
RETURN pg_advisory_xact_lock(hashtextextended(customer_id, 0));

COMMENT ON FUNCTION app.lock_stripe_customer(text) IS
    'Until the transaction ends nobody else changes what is known of the customer.';

CREATE OR REPLACE FUNCTION app.compare_stripe_snapshot(
    seen_at timestamptz,
    known_at timestamptz,
    is_settled boolean,
    source text,
    can_fetch boolean
)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN known_at IS NULL OR source = 'object' THEN 'applied'
    -- What was fetched is known since the request, and was told up to a second later.
    WHEN date_trunc('second', seen_at) >= known_at + interval '1 second' THEN 'applied'
    WHEN is_settled AND date_trunc('second', seen_at) >= date_trunc('second', known_at)
        THEN 'applied'
    WHEN date_trunc('second', seen_at) < date_trunc('second', known_at)
        AND (is_settled OR source = 'event')
        THEN 'stale'
    WHEN can_fetch THEN 'ambiguous'
    ELSE 'applied'
END;

COMMENT ON FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
) IS
    'applied, stale or ambiguous: newer counts, and in the same second what is the same.';

-- What follows keeps its plans, also those made while the tables were empty: it goes by
-- the indexes, and what it joins is looked up row by row, LIMIT 1, whatever their size.
-- Without hash joins users are written in the order of their ids.

CREATE OR REPLACE FUNCTION app.sync_stripe_users(
    user_ids uuid[], is_dry_run boolean DEFAULT FALSE
)
RETURNS TABLE (
    id uuid,
    customer_id text,
    subscription_id text,
    differences text[],
    has_unknown_price boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
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

COMMENT ON FUNCTION app.sync_stripe_users(uuid[], boolean) IS
    'Gives users what their customers and the best subscriptions say, and tells it.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean,
    is_dry_run boolean
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (v.id) v.*
        FROM jsonb_to_recordset(snapshots) AS v (
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
            -- What is known by name only takes any snapshot, and a deletion always counts.
            CASE
                WHEN o.known_created_at IS NULL THEN 'applied'
                WHEN o.is_deleted AND NOT o.was_deleted THEN 'applied'
                ELSE app.compare_stripe_snapshot(
                    o.as_of,
                    o.known_as_of,
                    o.is_same
                    AND NOT o.is_revived
                    AND NOT (o.was_provisional AND source = 'page'),
                    source,
                    can_fetch
                )
            END AS result,
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
        WHERE j.result = 'applied' AND NOT is_dry_run
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
        j.result,
        j.differences,
        j.user_id,
        k.released_user_id,
        j.proposed_user_id
    FROM judged AS j
    LEFT JOIN kept AS k ON j.id = k.id
    ORDER BY j.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_customers(jsonb, text, boolean, boolean, boolean) IS
    'Judges snapshots of customers, their user_id a claim, and keeps those that count.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_subscriptions(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    is_dry_run boolean
)
RETURNS TABLE (id text, result text, differences text[], user_id uuid)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (v.id) v.*
        FROM jsonb_populate_recordset(NULL::app.stripe_subscriptions, snapshots) AS v
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
            app.compare_stripe_snapshot(
                c.as_of,
                c.known_as_of,
                c.differences = '{}' AND NOT (c.was_provisional AND source = 'page'),
                source,
                can_fetch
            ) AS result
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
        WHERE j.result = 'applied' AND NOT is_dry_run
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
        j.result,
        j.differences,
        j.owner_id AS user_id
    FROM judged AS j
    ORDER BY j.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean, boolean) IS
    'Judges snapshots of subscriptions, and keeps those that count.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_snapshots(
    object_type text,
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean DEFAULT FALSE,
    is_dry_run boolean DEFAULT FALSE
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
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
                (v.snapshot ->> 'user_id')::uuid,
                (SELECT c.user_id FROM app.stripe_customers AS c WHERE c.id = n.id),
                (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = n.id),
                (
                    SELECT p.id
                    FROM app.users AS p
                    WHERE match_email AND lower(p.email) = lower(v.snapshot ->> 'email')
                )
            ])
            FROM jsonb_array_elements(snapshots) AS v (snapshot)
            CROSS JOIN LATERAL (
                SELECT COALESCE(v.snapshot ->> 'customer_id', v.snapshot ->> 'id') AS id
            ) AS n
        ))
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;
    IF object_type = 'customers' THEN
        RETURN QUERY
        SELECT p.*
        FROM app.upsert_stripe_customers(
            snapshots, source, can_fetch, match_email, is_dry_run
        ) AS p;
    ELSIF object_type = 'subscriptions' THEN
        RETURN QUERY
        SELECT
            p.*,
            NULL::uuid,
            NULL::uuid
        FROM app.upsert_stripe_subscriptions(snapshots, source, can_fetch, is_dry_run) AS p;
    END IF;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_snapshots(
    text, jsonb, text, boolean, boolean, boolean
) IS
    'Judges snapshots of customers or of subscriptions, and keeps those that count.';

CREATE OR REPLACE FUNCTION app.apply_stripe_event(
    id text,
    type text,
    api_version text,
    event_created_at timestamptz,
    payload jsonb,
    lock_key text,
    object_type text,
    snapshot jsonb,
    can_fetch boolean
)
RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    result text := 'ignored';
    judged record;
BEGIN
    -- What the lock waits for must be seen after it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.apply_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = apply_stripe_event.id
            AND e.status IN ('applied', 'stale', 'ignored')
    ) THEN
        RETURN 'duplicate';
    END IF;

    IF object_type IS NOT NULL THEN
        SELECT p.* INTO judged
        FROM app.upsert_stripe_snapshots(
            object_type, jsonb_build_array(snapshot), 'event', can_fetch
        ) AS p;
        result := judged.result;
        IF result = 'ambiguous' THEN
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
        apply_stripe_event.id, apply_stripe_event.type, apply_stripe_event.api_version,
        apply_stripe_event.event_created_at, apply_stripe_event.payload, result, 1, now()
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

COMMENT ON FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
) IS
    'Enters an event once, with the snapshot it gives; of an ambiguous one it says so only.';

-- Erasing the personal data of a user.

-- SECURITY DEFINER, so that the application needs no DELETE on payloads, and to reach
-- tables that were detached from message_payloads.
CREATE OR REPLACE FUNCTION app.anonymize_user(user_id uuid)
RETURNS SETOF app.users
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    detached text;
BEGIN
    -- Above READ COMMITTED, payloads committed after the snapshot are not visible.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'anonymize_user needs READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- FOR UPDATE waits for transactions that insert rows referring to the user; the
    -- statements below then see those rows.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = anonymize_user.user_id
    FOR UPDATE;
    -- The id may be a fingerprint's: do not delete the payloads of that payer.
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

    -- message_payloads first: the lock of the DELETE keeps every partition attached
    -- until commit, and rows move between these tables only under a lock on the user.
    DELETE FROM app.message_payloads AS p
    WHERE p.subject_id = anonymize_user.user_id;

    FOREACH detached IN ARRAY ARRAY['waiting_payloads', 'retired_payloads'] LOOP
        CONTINUE WHEN to_regclass('app.' || detached) IS NULL;
        BEGIN
            EXECUTE format('DELETE FROM app.%I WHERE subject_id = $1', detached)
            USING anonymize_user.user_id;
        EXCEPTION
            -- Dropped, with all its rows, while this waited for the lock.
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
$$;

COMMENT ON FUNCTION app.anonymize_user(uuid) IS
    'Erases a user''s personal data and payloads, keeps messages; returns the row.';

REVOKE EXECUTE ON FUNCTION app.anonymize_user(uuid) FROM public;
