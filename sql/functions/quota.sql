CREATE OR REPLACE FUNCTION app.get_next_reset(
    anchor timestamptz, reset timestamptz, moment timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN reset > moment THEN reset
    WHEN reset IS NOT NULL THEN app.get_period_end(anchor, moment)
END;

COMMENT ON FUNCTION app.get_next_reset(timestamptz, timestamptz, timestamptz) IS
    'The reset while it is ahead of the moment, else the next boundary; NULL if none.';

CREATE OR REPLACE FUNCTION app.get_start_date(
    anchor timestamptz,
    reset timestamptz,
    moment timestamptz,
    known_start timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    -- A reset moved off the boundaries must not begin a period too late.
    WHEN reset > moment AND known_start <= moment THEN known_start
    WHEN reset IS NULL THEN anchor
    ELSE app.get_period_start(anchor, moment)
END;

COMMENT ON FUNCTION app.get_start_date(
    timestamptz, timestamptz, timestamptz, timestamptz
) IS
    'The start of the period at the moment: the one known, where it still holds.';

-- This and get_period_usage return a row each, for only such a function is inlined with
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
    'Exact credits of a payer in [start, end): whole days, and messages of cut days.';

-- LIMIT ALL keeps the subquery whole, so that the period is computed once.
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
    'The period of a payer that holds the moment, half-open, and its exact credits.';
