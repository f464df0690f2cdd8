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

SELECT
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

-- The Stripe mirror, and what users get from it. Snapshots of customers and
-- subscriptions are compared with the stored rows and upserted. The view
-- app.stripe_entitlements says what each user should have; app.sync_stripe_users writes
-- it.
--
-- Bodies in BEGIN ATOMIC are inlined into the statements that use them. Statements have
-- generic plans (plan_cache_mode), because planning one takes longer than running it. A
-- session may make a plan while the tables are empty and use it when they are large, so
-- a plan has to look rows up by an index, one by one: by enable_seqscan = off, LATERAL
-- with LIMIT 1, and = ANY (array). LIMIT ALL is an optimization fence: the expressions
-- of its subquery are evaluated once.

-- The linter takes parameters for columns without a table.
-- noqa: disable=RF02,RF03,AM03,AM06,AM09

-- ---------------------------------------------------------------------------
-- Locks and order
-- ---------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION app.lock_stripe_customer(customer_id text)
RETURNS void LANGUAGE sql
RETURN pg_advisory_xact_lock(hashtextextended(customer_id, 0));

COMMENT ON FUNCTION app.lock_stripe_customer(text) IS
    'Takes a transaction-level advisory lock on the customer.';

CREATE OR REPLACE FUNCTION app.lock_snapshot_users(snapshots jsonb, match_email boolean)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    -- Before rows are written whose foreign keys lock the same users in another order.
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
END;
$$;

COMMENT ON FUNCTION app.lock_snapshot_users(jsonb, boolean) IS
    'Locks in id order all users that the customers in snapshots have, had or may get.';

-- seen_at is the snapshot's time, known_at the stored row's. is_unchanged: the snapshot
-- agrees with the stored row, so that their order within a second does not matter.
-- source: event, page (of a list), or object (fetched under the customer's lock).
CREATE OR REPLACE FUNCTION app.compare_stripe_snapshot(
    seen_at timestamptz,
    known_at timestamptz,
    is_unchanged boolean,
    source text,
    can_fetch boolean
)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN known_at IS NULL OR source = 'object' THEN 'applied'
    -- The time of a fetched row is that of the request. The row may contain a change
    -- that Stripe made between the request and the response, in the next second.
    WHEN date_trunc('second', seen_at) >= known_at + interval '1 second' THEN 'applied'
    WHEN is_unchanged
        AND date_trunc('second', seen_at) >= date_trunc('second', known_at)
        THEN 'applied'
    WHEN date_trunc('second', seen_at) < date_trunc('second', known_at)
        AND (is_unchanged OR source = 'event')
        THEN 'stale'
    WHEN can_fetch THEN 'ambiguous'
    ELSE 'applied'
END;

COMMENT ON FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
) IS
    'Compares snapshot times: applied, stale or ambiguous (same second, new content).';

-- ---------------------------------------------------------------------------
-- Customers
-- ---------------------------------------------------------------------------

-- A customer keeps its user until a snapshot names another one. An e-mail address
-- proposes a user who has neither a customer nor another of the snapshots.
CREATE OR REPLACE FUNCTION app.find_customer_owners(snapshots jsonb)
RETURNS TABLE (
    id text,
    email text,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    known_user_id uuid,
    was_deleted boolean,
    known_created_at timestamptz,
    known_as_of timestamptz,
    was_provisional boolean,
    holder_id uuid,
    owner_id uuid,
    is_relinked boolean,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH owned AS MATERIALIZED (
        SELECT DISTINCT ON (g.id)
            g.id,
            g.email,
            g.is_deleted,
            COALESCE(g.created_at, known.created_at) AS created_at,
            g.as_of,
            known.user_id AS known_user_id,
            known.is_deleted AS was_deleted,
            known.created_at AS known_created_at,
            known.as_of AS known_as_of,
            known.is_provisional AS was_provisional,
            holder.id AS holder_id,
            COALESCE(claimant.id, known.user_id, holder.id) AS owner_id,
            claimant.id IS NOT NULL
            AND (claimant.id IS DISTINCT FROM known.user_id) AS is_relinked
        FROM jsonb_to_recordset(snapshots) AS g (
            id text,
            user_id uuid,
            email text,
            is_deleted boolean,
            created_at timestamptz,
            as_of timestamptz
        )
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
        ORDER BY g.id
    )

    SELECT
        o.*,
        (
            SELECT u.id
            FROM app.users AS u
            WHERE o.owner_id IS NULL
                AND lower(u.email) = lower(o.email)
                AND u.stripe_customer_id IS NULL
                AND NOT EXISTS (
                    SELECT
                    FROM owned AS other
                    WHERE other.owner_id = u.id
                )
        ) AS proposed_user_id
    FROM owned AS o;
END;

COMMENT ON FUNCTION app.find_customer_owners(jsonb) IS
    'Customer snapshots, their stored rows, the users they have and may get by e-mail.';

CREATE OR REPLACE FUNCTION app.compare_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean
)
RETURNS TABLE (
    id text,
    user_id uuid,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    is_provisional boolean,
    result text,
    differences text[],
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH resolved AS (
        SELECT
            o.*,
            COALESCE(
                o.owner_id, CASE WHEN match_email THEN o.proposed_user_id END
            ) AS user_id,
            -- A page or a fetched object revives a deleted customer; an event does not.
            o.is_deleted OR (o.was_deleted IS TRUE AND source = 'event') AS is_gone,
            o.was_deleted IS TRUE AND NOT o.is_deleted AND source <> 'event'
                AS is_revived
        FROM app.find_customer_owners(snapshots) AS o
    )

    SELECT
        r.id,
        r.user_id,
        r.is_gone AS is_deleted,
        r.created_at,
        r.as_of,
        COALESCE(
            source = 'event'
            AND r.known_created_at IS NOT NULL
            AND date_trunc('second', r.as_of) = date_trunc('second', r.known_as_of)
            AND (r.was_provisional OR r.is_relinked),
            FALSE
        ) AS is_provisional,
        CASE
            -- Only the id is known, from a checkout: any snapshot is newer.
            WHEN r.known_created_at IS NULL THEN 'applied'
            -- A deletion is final.
            WHEN r.is_deleted AND NOT r.was_deleted THEN 'applied'
            ELSE app.compare_stripe_snapshot(
                r.as_of,
                r.known_as_of,
                NOT r.is_relinked
                AND NOT r.is_revived
                AND NOT (r.was_provisional AND source = 'page'),
                source,
                can_fetch
            )
        END AS result,
        array_remove(ARRAY[
            CASE WHEN r.known_as_of IS NULL OR r.is_revived THEN 'missing_here' END,
            CASE WHEN r.is_gone AND NOT r.was_deleted THEN 'missing_there' END,
            CASE
                WHEN r.created_at IS DISTINCT FROM r.known_created_at
                    AND r.known_as_of IS NOT NULL
                    THEN 'created_at'
            END,
            CASE
                WHEN NOT r.is_gone AND r.user_id IS NULL THEN 'unlinked'
                WHEN r.user_id IS DISTINCT FROM r.known_user_id
                    AND r.known_as_of IS NOT NULL
                    THEN 'unlinked'
            END
        ], NULL) AS differences,
        CASE WHEN r.holder_id <> r.user_id THEN r.holder_id END AS released_user_id,
        r.proposed_user_id
    FROM resolved AS r;
END;

COMMENT ON FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean) IS
    'Customer rows as the snapshots would make them, each with its result.';

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
AS $$
#variable_conflict use_column
BEGIN
    IF NOT is_dry_run THEN
        PERFORM app.lock_snapshot_users(snapshots, match_email);
    END IF;

    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_customers(
            snapshots, source, can_fetch, match_email
        ) AS c
    ),

    newer AS MATERIALIZED (
        SELECT c.*
        FROM compared AS c
        WHERE c.result = 'applied' AND NOT is_dry_run
    ),

    upserted AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, is_deleted, created_at, as_of, is_provisional
        )
        SELECT
            n.id,
            n.user_id,
            n.is_deleted,
            n.created_at,
            n.as_of,
            n.is_provisional
        FROM newer AS n
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
        SET user_id = n.user_id
        FROM newer AS n
        WHERE s.customer_id = n.id
            AND s.customer_id = ANY(ARRAY(SELECT o.id FROM newer AS o))
            AND s.user_id IS DISTINCT FROM n.user_id
    ),

    -- A customer has one user: clear the old link before sync_stripe_users sets the new.
    released AS (
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        WHERE u.id = ANY(ARRAY(SELECT n.released_user_id FROM newer AS n))
    )

    SELECT
        c.id,
        c.result,
        c.differences,
        c.user_id,
        n.released_user_id,
        c.proposed_user_id
    FROM compared AS c
    LEFT JOIN newer AS n ON c.id = n.id
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_customers(
    jsonb, text, boolean, boolean, boolean
) IS
    'Upserts customer snapshots newer than the stored rows; returns a result for each.';

-- ---------------------------------------------------------------------------
-- Subscriptions
-- ---------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION app.compare_stripe_subscriptions(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS TABLE (
    id text,
    customer_id text,
    user_id uuid,
    status text,
    price_id text,
    current_period_start timestamptz,
    current_period_end timestamptz,
    billing_cycle_anchor timestamptz,
    cancel_at_period_end boolean,
    canceled_at timestamptz,
    created_at timestamptz,
    as_of timestamptz,
    is_provisional boolean,
    result text,
    differences text[]
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH compared AS (
        SELECT DISTINCT ON (g.id)
            g.*,
            k.as_of AS known_as_of,
            k.is_provisional AS was_provisional,
            COALESCE(customer.user_id, holder.id) AS owner_id,
            -- A restored dump of a comparison of longer rows has another text.
            array_remove(ARRAY[
                CASE
                    WHEN (g.status, g.canceled_at)
                        IS DISTINCT FROM (k.status, k.canceled_at)
                        THEN 'status'
                END,
                CASE WHEN g.price_id IS DISTINCT FROM k.price_id THEN 'price' END,
                CASE
                    WHEN (g.current_period_start, g.current_period_end)
                        IS DISTINCT FROM (k.current_period_start, k.current_period_end)
                        THEN 'period'
                    WHEN (g.billing_cycle_anchor, g.cancel_at_period_end)
                        IS DISTINCT FROM (
                            k.billing_cycle_anchor, k.cancel_at_period_end
                        )
                        THEN 'period'
                END,
                CASE WHEN g.created_at <> k.created_at THEN 'created_at' END
            ], NULL) AS changes
        FROM jsonb_populate_recordset(NULL::app.stripe_subscriptions, snapshots) AS g
        LEFT JOIN LATERAL (
            SELECT s.*
            FROM app.stripe_subscriptions AS s
            WHERE s.id = g.id
            LIMIT 1
        ) AS k ON TRUE
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
        ORDER BY g.id
    )

    SELECT
        c.id,
        c.customer_id,
        c.owner_id AS user_id,
        c.status,
        c.price_id,
        c.current_period_start,
        c.current_period_end,
        c.billing_cycle_anchor,
        c.cancel_at_period_end,
        c.canceled_at,
        c.created_at,
        c.as_of,
        COALESCE(
            source = 'event'
            AND date_trunc('second', c.as_of) = date_trunc('second', c.known_as_of)
            AND (c.was_provisional OR c.changes <> '{}'),
            FALSE
        ) AS is_provisional,
        app.compare_stripe_snapshot(
            c.as_of,
            c.known_as_of,
            c.changes = '{}' AND NOT (c.was_provisional AND source = 'page'),
            source,
            can_fetch
        ) AS result,
        CASE
            WHEN c.known_as_of IS NULL THEN ARRAY['missing_here']
            ELSE c.changes
        END AS differences
    FROM compared AS c;
END;

COMMENT ON FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean) IS
    'Subscription rows as the snapshots would make them, each with its result.';

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
    IF NOT is_dry_run THEN
        PERFORM app.lock_snapshot_users(snapshots, FALSE);
    END IF;

    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_subscriptions(snapshots, source, can_fetch) AS c
    ),

    upserted AS (
        INSERT INTO app.stripe_subscriptions AS s (
            id, customer_id, user_id, status, price_id, current_period_start,
            current_period_end, billing_cycle_anchor, cancel_at_period_end, canceled_at,
            created_at, as_of, is_provisional
        )
        SELECT
            c.id,
            c.customer_id,
            c.user_id,
            c.status,
            c.price_id,
            c.current_period_start,
            c.current_period_end,
            c.billing_cycle_anchor,
            c.cancel_at_period_end,
            c.canceled_at,
            c.created_at,
            c.as_of,
            c.is_provisional
        FROM compared AS c
        WHERE c.result = 'applied' AND NOT is_dry_run
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
        c.id,
        c.result,
        c.differences,
        c.user_id
    FROM compared AS c
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean, boolean) IS
    'Upserts subscription snapshots newer than the stored rows; a result for each.';

-- ---------------------------------------------------------------------------
-- Entitlements
-- ---------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION app.find_user_customer(user_id uuid, linked_id text)
RETURNS TABLE (id text, is_deleted boolean, created_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        c.id,
        c.is_deleted,
        c.created_at
    FROM (
        SELECT
            m.id,
            m.is_deleted,
            m.created_at
        FROM app.stripe_customers AS m
        WHERE m.user_id = find_user_customer.user_id
        UNION ALL
        -- The linked customer may not be in the mirror yet.
        SELECT
            linked_id AS id,
            FALSE AS is_deleted,
            NULL AS created_at
        WHERE linked_id IS NOT NULL
            AND NOT EXISTS (
                SELECT
                FROM app.stripe_customers AS m
                WHERE m.id = linked_id
            )
    ) AS c
    ORDER BY
        c.is_deleted,
        EXISTS (
            SELECT
            FROM app.stripe_subscriptions AS s
            WHERE s.customer_id = c.id AND app.is_active_status(s.status)
        ) DESC,
        c.id = linked_id DESC NULLS LAST,
        c.created_at,
        c.id
    LIMIT 1;
END;

COMMENT ON FUNCTION app.find_user_customer(uuid, text) IS
    'The user''s customer that counts: live, then subscribed, then linked, oldest.';

CREATE OR REPLACE FUNCTION app.find_best_subscription(
    customer_id text, is_customer_deleted boolean
)
RETURNS TABLE (
    id text,
    price_id text,
    status text,
    is_active boolean,
    quota_anchor timestamptz,
    next_quota_reset timestamptz
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH best AS (
        SELECT
            s.id,
            s.price_id,
            s.billing_cycle_anchor AS anchor,
            s.current_period_start AS period_start,
            s.current_period_end AS period_end,
            -- Deleting a customer cancels its subscriptions, even if no event says so.
            CASE
                WHEN is_customer_deleted AND s.status <> 'incomplete_expired'
                    THEN 'canceled'
                ELSE s.status
            END AS status
        FROM app.stripe_subscriptions AS s
        WHERE s.customer_id = find_best_subscription.customer_id
        ORDER BY
            app.is_active_status(s.status) DESC,
            s.current_period_end DESC NULLS LAST,
            s.created_at DESC,
            s.id
        LIMIT 1
    ),

    -- The quota's period is the paid one if that ends on Stripe's anchor or is a month.
    paid AS (
        SELECT
            b.id,
            b.price_id,
            b.anchor,
            b.period_end,
            b.status,
            app.is_active_status(b.status) AS is_active,
            b.period_end = app.get_period_end(b.anchor, b.period_start) AS is_on_anchor,
            b.period_end - b.period_start
                BETWEEN interval '28 days' AND interval '31 days' AS is_month
        FROM best AS b
        LIMIT ALL
    )

    SELECT
        p.id,
        p.price_id,
        p.status,
        p.is_active,
        -- NULL: the user keeps its anchor and its reset.
        CASE
            WHEN NOT p.is_active THEN NULL
            WHEN p.is_on_anchor THEN p.anchor
            WHEN p.is_month THEN p.period_end
            ELSE COALESCE(p.anchor, p.period_end)
        END AS quota_anchor,
        CASE
            WHEN p.is_active AND (p.is_on_anchor OR p.is_month) THEN p.period_end
        END AS next_quota_reset
    FROM paid AS p;
END;

COMMENT ON FUNCTION app.find_best_subscription(text, boolean) IS
    'The customer''s subscription that counts: active first, then the latest end.';

CREATE OR REPLACE VIEW app.stripe_entitlements WITH (security_invoker = TRUE) AS
SELECT
    u.id,
    e.stripe_customer_id,
    e.created_at,
    e.stripe_subscription_id,
    e.stripe_price_id,
    e.subscription_status,
    e.base_quota,
    e.quota_anchor,
    e.next_quota_reset,
    e.has_unknown_price,
    array_remove(ARRAY[
        CASE
            WHEN e.stripe_customer_id IS DISTINCT FROM u.stripe_customer_id
                THEN 'unlinked'
        END,
        CASE WHEN e.created_at <> u.created_at THEN 'created_at' END,
        CASE
            WHEN (e.stripe_subscription_id, e.subscription_status)
                IS DISTINCT FROM (u.stripe_subscription_id, u.subscription_status)
                THEN 'status'
        END,
        CASE
            WHEN (e.stripe_price_id, e.base_quota)
                IS DISTINCT FROM (u.stripe_price_id, u.base_quota)
                THEN 'price'
        END,
        CASE
            WHEN (e.quota_anchor, e.next_quota_reset)
                IS DISTINCT FROM (u.quota_anchor, u.next_quota_reset)
                THEN 'period'
        END
    ], NULL) AS differences,
    CASE
        WHEN best.is_active AND plan.id IS NOT NULL THEN NULL
        WHEN e.stripe_customer_id IS NULL THEN 'no_customer'
        WHEN customer.is_deleted THEN 'deleted_customer'
        WHEN best.id IS NULL THEN 'no_subscription'
        WHEN NOT best.is_active THEN 'inactive_subscription'
        ELSE 'unknown_price'
    END AS reason
FROM app.users AS u
LEFT JOIN LATERAL app.find_user_customer(u.id, u.stripe_customer_id) AS customer ON TRUE
LEFT JOIN LATERAL app.find_best_subscription(
    COALESCE(customer.id, u.stripe_customer_id), customer.is_deleted
) AS best ON TRUE
LEFT JOIN app.plans AS plan ON best.price_id = plan.stripe_price_id
LEFT JOIN app.plans AS free ON free.id = 'free'
CROSS JOIN LATERAL ( -- noqa: ST05
    SELECT
        COALESCE(customer.id, u.stripe_customer_id) AS stripe_customer_id,
        COALESCE(customer.created_at, u.created_at) AS created_at,
        best.id AS stripe_subscription_id,
        best.price_id AS stripe_price_id,
        best.status AS subscription_status,
        COALESCE(
            CASE WHEN best.is_active THEN plan.monthly_credits END,
            free.monthly_credits,
            u.base_quota
        ) AS base_quota,
        COALESCE(best.quota_anchor, u.quota_anchor) AS quota_anchor,
        CASE
            WHEN best.next_quota_reset IS NOT NULL THEN best.next_quota_reset
            -- A lapsed reset on an unchanged anchor already means the next boundary.
            WHEN best.is_active
                AND (best.quota_anchor <> u.quota_anchor OR u.next_quota_reset > now())
                THEN app.get_period_end(
                    COALESCE(best.quota_anchor, u.quota_anchor), now()
                )
            ELSE u.next_quota_reset
        END AS next_quota_reset,
        COALESCE(best.is_active AND plan.id IS NULL, FALSE) AS has_unknown_price
    LIMIT ALL
) AS e;

COMMENT ON VIEW app.stripe_entitlements IS
    'What each user should have by the mirror; sync_stripe_users copies it to users.';
COMMENT ON COLUMN app.stripe_entitlements.id IS
    'The user.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_customer_id IS
    'The customer that counts: live, then subscribed, then linked; NULL if none.';
COMMENT ON COLUMN app.stripe_entitlements.created_at IS
    'When the customer was created at Stripe; the user''s created_at if not known.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_subscription_id IS
    'Its best subscription: active first, then latest period end; NULL if none.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_price_id IS
    'Price of the subscription; NULL if there is none or it has no price.';
COMMENT ON COLUMN app.stripe_entitlements.subscription_status IS
    'Stripe''s status; canceled if the customer is deleted; NULL if no subscription.';
COMMENT ON COLUMN app.stripe_entitlements.base_quota IS
    'Credits a period: of the plan that the price buys if active, else of free.';
COMMENT ON COLUMN app.stripe_entitlements.quota_anchor IS
    'Periods begin at the anchor plus whole months in UTC; kept if not active.';
COMMENT ON COLUMN app.stripe_entitlements.next_quota_reset IS
    'When the period ends; kept if not active; NULL if it never resets.';
COMMENT ON COLUMN app.stripe_entitlements.has_unknown_price IS
    'Whether the subscription is active and its price buys no plan.';
COMMENT ON COLUMN app.stripe_entitlements.differences IS
    'Groups of columns that differ from users, docs/stripe.md; empty if none.';
COMMENT ON COLUMN app.stripe_entitlements.reason IS
    'Why no paid plan applies: no_customer, deleted_customer, no_subscription,'
    ' inactive_subscription, unknown_price; NULL if one applies.';

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
AS $$
#variable_conflict use_column
BEGIN
    -- Transactions of two customers of one user queue here: the statement below sees
    -- what the first one committed.
    IF NOT is_dry_run THEN
        PERFORM u.id
        FROM app.users AS u
        WHERE u.id = ANY(user_ids)
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;

    RETURN QUERY
    WITH entitled AS MATERIALIZED (
        SELECT
            e.id,
            e.stripe_customer_id,
            e.created_at,
            e.stripe_subscription_id,
            e.stripe_price_id,
            e.subscription_status,
            e.base_quota,
            e.quota_anchor,
            e.next_quota_reset,
            e.has_unknown_price,
            e.differences
        FROM app.stripe_entitlements AS e
        WHERE e.id = ANY(user_ids)
    ),

    synced AS (
        UPDATE app.users AS u
        SET
            stripe_customer_id = e.stripe_customer_id,
            created_at = e.created_at,
            stripe_subscription_id = e.stripe_subscription_id,
            stripe_price_id = e.stripe_price_id,
            subscription_status = e.subscription_status,
            base_quota = e.base_quota,
            quota_anchor = e.quota_anchor,
            next_quota_reset = e.next_quota_reset
        FROM entitled AS e
        WHERE u.id = e.id
            AND u.id = ANY(user_ids)
            AND e.differences <> '{}'
            AND NOT is_dry_run
    )

    SELECT
        e.id,
        e.stripe_customer_id AS customer_id,
        e.stripe_subscription_id AS subscription_id,
        e.differences,
        e.has_unknown_price
    FROM entitled AS e
    ORDER BY e.id;
END;
$$;

COMMENT ON FUNCTION app.sync_stripe_users(uuid[], boolean) IS
    'Updates users from the Stripe mirror; returns the differences.';

-- ---------------------------------------------------------------------------
-- Events
-- ---------------------------------------------------------------------------

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
    snapshots jsonb := jsonb_build_array(snapshot);
    result text := 'ignored';
    owner_ids uuid[];
BEGIN
    -- Statements after the lock must see what its last holder committed.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.apply_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = apply_stripe_event.id AND e.status <> 'failed'
    ) THEN
        RETURN 'duplicate';
    END IF;

    IF object_type = 'customers' THEN
        SELECT c.result, ARRAY[c.released_user_id, c.user_id] INTO result, owner_ids
        FROM app.upsert_stripe_customers(snapshots, 'event', can_fetch, FALSE, FALSE)
            AS c;
    ELSIF object_type IS NOT NULL THEN
        SELECT s.result, ARRAY[s.user_id] INTO result, owner_ids
        FROM app.upsert_stripe_subscriptions(snapshots, 'event', can_fetch, FALSE)
            AS s;
    END IF;
    IF result = 'ambiguous' THEN
        RETURN result;
    END IF;
    IF result = 'applied' THEN
        PERFORM FROM app.sync_stripe_users(owner_ids);
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
    WHERE e.status = 'failed';
    RETURN result;
END;
$$;

COMMENT ON FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
) IS
    'Records and applies an event once; ambiguous, with nothing recorded, if its object'
    ' must be fetched.';

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
    -- waiting_payloads is the detached default partition, until its rows have moved to
    -- their months; retired_payloads is a detached month, until it is archived and
    -- dropped. Both exist only during pyapp db maintain and after an interruption.
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
