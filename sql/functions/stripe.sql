-- How the functions of the Stripe mirror lock and order what they store. The other
-- files stripe_*.sql have one subject each, and follow these rules.
--
-- Bodies in BEGIN ATOMIC are inlined into the statements that use them. Statements have
-- generic plans (plan_cache_mode), because planning one takes longer than running it. A
-- session may make a plan while the tables are empty and use it when they are large, so
-- a plan has to look rows up by an index, one by one: by enable_seqscan = off, LATERAL
-- with LIMIT 1, and = ANY (array). LIMIT ALL is an optimization fence: the expressions
-- of its subquery are evaluated once. Most statements are of one object, for which
-- nested loops of index scans start faster than bitmap scans, hash joins and memoize
-- nodes.
--
-- Rows of more than two columns are compared column by column: pg_dump writes such a
-- comparison with parentheses that a restore drops, and the function would differ.

-- The linter takes parameters for columns without a table.
-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

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
        SELECT
            unnest(
                ARRAY[
                    (v.snapshot ->> 'claimed_user_id')::uuid,
                    c.user_id,
                    c.claimed_user_id,
                    (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = n.id),
                    (
                        SELECT p.id
                        FROM app.users AS p
                        WHERE match_email
                            AND lower(p.email) = lower(v.snapshot ->> 'email')
                    )
                ]
            )
        FROM jsonb_array_elements(snapshots) AS v (snapshot)
        CROSS JOIN LATERAL (
            SELECT COALESCE(v.snapshot ->> 'customer_id', v.snapshot ->> 'id') AS id
        ) AS n
        LEFT JOIN LATERAL (
            SELECT
                k.user_id,
                k.claimed_user_id
            FROM app.stripe_customers AS k
            WHERE k.id = n.id
            LIMIT 1
        ) AS c ON TRUE
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
    WHEN is_unchanged THEN
        CASE
            WHEN date_trunc('second', seen_at) > date_trunc('second', known_at)
                THEN 'applied'
            -- An event would change nothing, not even the time of the row.
            WHEN date_trunc('second', seen_at) = date_trunc('second', known_at)
                AND source <> 'event'
                THEN 'applied'
            ELSE 'stale'
        END
    WHEN source = 'event'
        AND date_trunc('second', seen_at) < date_trunc('second', known_at)
        THEN 'stale'
    WHEN can_fetch THEN 'ambiguous'
    ELSE 'applied'
END;

COMMENT ON FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
) IS
    'Compares snapshot times: applied, stale or ambiguous (same second, new content).';
