-- One statement, so one snapshot: a message and its sum commit together, and writers at
-- work never show up here.
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
-- Compared one by one: rows compared whole are dumped in one form and restored in
-- another.
WHERE d.messages IS DISTINCT FROM r.messages
    OR d.input_tokens IS DISTINCT FROM r.input_tokens
    OR d.cache_creation_input_tokens IS DISTINCT FROM r.cache_creation_input_tokens
    OR d.cache_read_input_tokens IS DISTINCT FROM r.cache_read_input_tokens
    OR d.output_tokens IS DISTINCT FROM r.output_tokens
    OR d.cost IS DISTINCT FROM r.cost
    OR d.credits IS DISTINCT FROM r.credits;

COMMENT ON VIEW app.usage_drift IS
    'Payers'' days for which usage_daily differs from messages; it should be empty.';
COMMENT ON COLUMN app.usage_drift.subject_id IS
    'Who pays: a user or a fingerprint.';
COMMENT ON COLUMN app.usage_drift.day IS
    'UTC day.';
COMMENT ON COLUMN app.usage_drift.kept_messages IS
    'What usage_daily says; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_messages IS
    'What messages add up to; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_input_tokens IS
    'What usage_daily says; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_input_tokens IS
    'What messages add up to; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cache_creation_input_tokens IS
    'What usage_daily says; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cache_creation_input_tokens IS
    'What messages add up to; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cache_read_input_tokens IS
    'What usage_daily says; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cache_read_input_tokens IS
    'What messages add up to; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_output_tokens IS
    'What usage_daily says; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_output_tokens IS
    'What messages add up to; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cost IS
    'What usage_daily says, in US dollars; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cost IS
    'What messages add up to, in US dollars; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_credits IS
    'What usage_daily says, in credits; NULL if it has no row.';
COMMENT ON COLUMN app.usage_drift.recorded_credits IS
    'What messages add up to, in credits; NULL if there are none.';

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
    'What the messages of a payer''s UTC day add up to; no row if there are none.';

-- Writers add to the row of usage_daily after they have inserted their messages, and
-- keep it locked until they commit. So once the row is locked here, the next statement
-- sees exactly the messages that the row should count: those of a writer that waits for
-- the row are not committed, and the writer adds them after this.
CREATE OR REPLACE FUNCTION app.repair_usage_day(subject uuid, usage_day date)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
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

COMMENT ON FUNCTION app.repair_usage_day(uuid, date) IS
    'Sets a payer''s day in usage_daily to the sum of messages; whether it changed.';

CREATE OR REPLACE VIEW app.referral_drift WITH (security_invoker = TRUE) AS
WITH granted AS (
    SELECT
        side.user_id,
        sum(side.referrals) AS referrals,
        sum(r.credits) AS credits
    FROM app.referrals AS r
    CROSS JOIN LATERAL (
        VALUES (r.referrer_id, 1), (r.referred_id, 0)
    ) AS side (user_id, referrals)
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
    'Users whose totals differ from referrals; higher credits were granted manually.';
COMMENT ON COLUMN app.referral_drift.user_id IS
    'The user.';
COMMENT ON COLUMN app.referral_drift.referral_limit IS
    'How many completed referrals the user may have.';
COMMENT ON COLUMN app.referral_drift.kept_count IS
    'What users says.';
COMMENT ON COLUMN app.referral_drift.completed_count IS
    'How many referrals by the user are completed.';
COMMENT ON COLUMN app.referral_drift.kept_credits IS
    'What users says, in credits a period.';
COMMENT ON COLUMN app.referral_drift.granted_credits IS
    'What completed referrals grant the user on either side, in credits a period.';

-- A writer of a referral locks both users before it commits, so the same holds here.
CREATE OR REPLACE FUNCTION app.repair_referral_totals(repaired_id uuid)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
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

COMMENT ON FUNCTION app.repair_referral_totals(uuid) IS
    'Sets the count, raises the credits to what referrals say; whether it changed.';
