SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION app.sum_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS TABLE (credits_used numeric) LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT COALESCE(sum(
        CASE
            WHEN d.day >= utc.period_start AND d.day + 1 <= utc.period_end
                THEN d.credits
            ELSE (
                SELECT sum(m.credits)
                FROM app.messages AS m
                WHERE m.subject_id = d.subject_id
                    AND m.finished_at >= d.day::timestamp AT TIME ZONE 'UTC'
                    AND m.finished_at < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
                    AND m.finished_at >= sum_credits.period_start
                    AND m.finished_at < sum_credits.period_end
            )
        END
    ), 0)
    FROM (
        SELECT
            sum_credits.period_start AT TIME ZONE 'UTC' AS period_start,
            sum_credits.period_end AT TIME ZONE 'UTC' AS period_end
        LIMIT ALL -- noqa: AM09
    ) AS utc
    INNER JOIN app.usage_daily AS d
        ON utc.period_start - interval '1 day' < d.day
        AND utc.period_end > d.day
    WHERE d.subject_id = sum_credits.subject;
END;

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
            CASE
                WHEN reset IS NULL THEN anchor
                -- A reset moved off the boundaries must not begin a period too late.
                WHEN reset > moment AND known_start <= moment THEN known_start
                ELSE app.get_period_start(anchor, moment)
            END AS period_start,
            COALESCE(app.get_next_reset(anchor, reset, moment), moment) AS end_date
        LIMIT ALL -- noqa: AM09
    ) AS p
    CROSS JOIN LATERAL app.sum_credits(
        get_period_usage.subject, p.period_start, p.end_date
    ) AS s;
END;

DROP FUNCTION app.get_start_date(timestamptz, timestamptz, timestamptz, timestamptz);

ALTER TABLE app.messages RESET (autovacuum_vacuum_insert_scale_factor);
