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
