-- name: find_subscription :optional
-- As Stripe was last seen to have it.
SELECT
    s.id,
    s.customer_id,
    s.user_id,
    s.status,
    s.price_id,
    s.current_period_start,
    s.current_period_end,
    s.billing_cycle_anchor,
    s.cancel_at_period_end,
    s.canceled_at,
    s.created_at,
    s.as_of,
    s.is_provisional
FROM app.stripe_subscriptions AS s
WHERE s.id = :id;

-- name: mark_subscription_provisional :rowcount
-- An event has named the subscription without saying how it is now.
UPDATE app.stripe_subscriptions AS s
SET is_provisional = TRUE
WHERE
    s.id = :id
    AND date_trunc('second', s.as_of) <= :as_of::timestamptz;

-- name: upsert_subscriptions :many
-- The rule of order, for subscriptions: see upsert_customers.
WITH given AS (
    SELECT
        r.id,
        r.customer_id,
        r.status,
        r.price_id,
        to_timestamp(r.current_period_start) AS current_period_start,
        to_timestamp(r.current_period_end) AS current_period_end,
        to_timestamp(r.billing_cycle_anchor) AS billing_cycle_anchor,
        COALESCE(r.cancel_at_period_end, FALSE) AS cancel_at_period_end,
        to_timestamp(r.canceled_at) AS canceled_at,
        to_timestamp(r.created) AS created_at,
        date_trunc('second', :as_of::timestamptz) AS seen_at
    FROM jsonb_to_recordset(:rows::jsonb) AS r (
        id text,
        customer_id text,
        status text,
        price_id text,
        current_period_start bigint,
        current_period_end bigint,
        billing_cycle_anchor bigint,
        cancel_at_period_end boolean,
        canceled_at bigint,
        created bigint
    )
),

compared AS (
    SELECT
        g.id,
        g.seen_at,
        s.is_provisional AS was_provisional,
        date_trunc('second', s.as_of) AS known_at,
        s.id IS NULL AS is_new,
        COALESCE(c.user_id, holder.id) AS user_id,
        CASE
            WHEN s.id IS NULL THEN ARRAY['missing_here']
            ELSE array_remove(
                ARRAY[
                    CASE
                        WHEN
                            (g.status, g.canceled_at)
                            IS DISTINCT FROM (s.status, s.canceled_at)
                            THEN 'status'
                    END,
                    CASE
                        WHEN g.price_id IS DISTINCT FROM s.price_id THEN 'price'
                    END,
                    CASE
                        WHEN
                            (
                                g.current_period_start,
                                g.current_period_end,
                                g.billing_cycle_anchor,
                                g.cancel_at_period_end
                            )
                            IS DISTINCT FROM (
                                s.current_period_start,
                                s.current_period_end,
                                s.billing_cycle_anchor,
                                s.cancel_at_period_end
                            )
                            THEN 'period'
                    END,
                    CASE WHEN g.created_at <> s.created_at THEN 'created_at' END
                ],
                NULL
            )
        END AS differences
    FROM given AS g
    LEFT JOIN app.stripe_subscriptions AS s ON g.id = s.id
    LEFT JOIN app.stripe_customers AS c ON g.customer_id = c.id
    LEFT JOIN app.users AS holder ON g.customer_id = holder.stripe_customer_id
),

settled AS (
    SELECT
        c.id,
        c.differences = '{}'
        AND NOT (c.was_provisional AND :source = 'page') AS is_settled
    FROM compared AS c
),

judged AS (
    SELECT
        c.id,
        c.user_id,
        c.differences,
        CASE
            WHEN c.is_new OR :source = 'object' THEN 'applied'
            WHEN c.seen_at > c.known_at THEN 'applied'
            WHEN c.seen_at = c.known_at AND d.is_settled THEN 'applied'
            WHEN c.seen_at < c.known_at AND (:source = 'event' OR d.is_settled)
                THEN 'stale'
            WHEN :can_ask THEN 'unclear'
            ELSE 'applied'
        END AS verdict,
        NOT c.is_new
        AND :source = 'event'
        AND c.seen_at = c.known_at
        AND (c.was_provisional OR c.differences <> '{}') AS is_provisional
    FROM compared AS c
    INNER JOIN settled AS d ON c.id = d.id
),

written AS (
    INSERT INTO app.stripe_subscriptions AS s (
        id,
        customer_id,
        user_id,
        status,
        price_id,
        current_period_start,
        current_period_end,
        billing_cycle_anchor,
        cancel_at_period_end,
        canceled_at,
        created_at,
        as_of,
        is_provisional
    )
    SELECT
        g.id,
        g.customer_id,
        j.user_id,
        g.status,
        g.price_id,
        g.current_period_start,
        g.current_period_end,
        g.billing_cycle_anchor,
        g.cancel_at_period_end,
        g.canceled_at,
        g.created_at,
        :as_of::timestamptz,
        j.is_provisional
    FROM judged AS j
    INNER JOIN given AS g ON j.id = g.id
    WHERE j.verdict = 'applied' AND NOT :is_dry_run
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
        as_of = GREATEST(s.as_of, excluded.as_of),
        is_provisional = excluded.is_provisional
),

locked AS (
    SELECT u.id
    FROM app.users AS u
    WHERE
        u.id IN (
            SELECT j.user_id
            FROM judged AS j
            WHERE j.verdict = 'applied'
        )
        AND NOT :is_dry_run
    ORDER BY u.id
    FOR NO KEY UPDATE
)

SELECT
    j.id,
    j.verdict,
    j.differences,
    NULL::uuid AS released_user_id,
    NULL::uuid AS proposed_user_id,
    COALESCE(k.id, j.user_id) AS user_id
FROM judged AS j
LEFT JOIN locked AS k ON j.user_id = k.id
ORDER BY j.id
LIMIT jsonb_array_length(:rows::jsonb);

-- name: list_unlisted_subscriptions :many
-- The same for subscriptions; those that have ended here need no second look.
SELECT
    s.id,
    s.customer_id,
    s.created_at
FROM app.stripe_subscriptions AS s
WHERE
    s.status NOT IN ('canceled', 'incomplete_expired')
    AND s.created_at <= :until
    AND (:since::timestamptz IS NULL OR s.created_at > :since)
    AND (:after_id::text IS NULL OR (s.created_at, s.id) < (:until, :after_id))
    AND NOT s.id IN (
        SELECT i.id
        FROM unnest(:listed_ids::text[]) AS i (id)
    )
ORDER BY s.created_at DESC, s.id DESC
LIMIT :limit;
