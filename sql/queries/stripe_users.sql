-- name: sync_users :many
-- The users' Stripe columns from the mirror: of a user's customers a live one, and of
-- those the one that he has, else the first; of its subscriptions an active one, and of
-- those the one that is paid longest. A paid month is the quota's period; where more or
-- less than a month is paid, the quota resets monthly on Stripe's anchor all the same,
-- and without an active subscription as it did. The callers hold the users' locks.
WITH customers AS (
    SELECT DISTINCT ON (u.id)
        u.id AS user_id,
        c.is_deleted,
        COALESCE(c.id, u.stripe_customer_id) AS id,
        COALESCE(c.created_at, u.created_at) AS created_at
    FROM app.users AS u
    INNER JOIN unnest(:user_ids::uuid[]) AS i (id) ON u.id = i.id
    LEFT JOIN app.stripe_customers AS c ON u.id = c.user_id
    ORDER BY
        u.id ASC,
        c.is_deleted ASC,
        (c.id = u.stripe_customer_id) DESC NULLS LAST,
        c.created_at ASC,
        c.id ASC
),

-- Deleting a customer cancels what it has, whether the news of that came or not.
held AS (
    SELECT
        c.user_id,
        s.id,
        s.price_id,
        s.current_period_start AS period_start,
        s.current_period_end AS period_end,
        s.billing_cycle_anchor AS anchor,
        s.created_at,
        CASE
            WHEN c.is_deleted AND s.status <> 'incomplete_expired' THEN 'canceled'
            ELSE s.status
        END AS status
    FROM customers AS c
    INNER JOIN app.stripe_subscriptions AS s ON c.id = s.customer_id
),

subscriptions AS (
    SELECT DISTINCT ON (h.user_id)
        h.user_id,
        h.id,
        h.price_id,
        h.period_start,
        h.period_end,
        h.anchor,
        h.status,
        h.status IN ('active', 'trialing', 'past_due') AS is_active
    FROM held AS h
    ORDER BY
        h.user_id ASC,
        h.status IN ('active', 'trialing', 'past_due') DESC,
        h.period_end DESC NULLS LAST,
        h.created_at DESC,
        h.id ASC
),

months AS (
    SELECT
        s.user_id,
        s.period_end = app.get_period_start(s.anchor, s.period_end)
        AND s.period_end = app.get_period_end(s.anchor, s.period_start) AS is_boundary,
        s.period_end - s.period_start
        BETWEEN interval '28 days' AND interval '31 days' AS is_month
    FROM subscriptions AS s
),

periods AS (
    SELECT
        s.user_id,
        CASE
            WHEN m.is_boundary THEN s.anchor
            WHEN m.is_month THEN s.period_end
            ELSE COALESCE(s.anchor, s.period_end)
        END AS anchor,
        CASE WHEN m.is_boundary OR m.is_month THEN s.period_end END AS reset
    FROM subscriptions AS s
    INNER JOIN months AS m ON s.user_id = m.user_id
    WHERE s.is_active
),

wanted AS (
    SELECT
        u.id,
        c.id AS customer_id,
        c.created_at,
        s.id AS subscription_id,
        s.price_id,
        s.status,
        s.is_active AND p.id IS NULL AS has_unknown_price,
        COALESCE(
            CASE WHEN s.is_active THEN p.monthly_credits END,
            app.get_monthly_credits('free'),
            u.base_quota
        ) AS base_quota,
        COALESCE(t.anchor, u.quota_anchor) AS anchor,
        -- A reset on the same boundaries that has lapsed means the next one already.
        CASE
            WHEN t.anchor IS NULL THEN u.next_quota_reset
            WHEN t.reset IS NOT NULL THEN t.reset
            WHEN
                t.anchor = u.quota_anchor
                AND app.get_next_reset(u.quota_anchor, u.next_quota_reset, now())
                = app.get_period_end(t.anchor, now())
                THEN u.next_quota_reset
            ELSE app.get_period_end(t.anchor, now())
        END AS reset
    FROM app.users AS u
    INNER JOIN customers AS c ON u.id = c.user_id
    LEFT JOIN subscriptions AS s ON u.id = s.user_id
    LEFT JOIN periods AS t ON u.id = t.user_id
    LEFT JOIN app.plans AS p ON s.price_id = p.stripe_price_id
),

joined AS (
    UPDATE app.stripe_subscriptions AS s
    SET user_id = c.user_id
    FROM app.stripe_customers AS c
    INNER JOIN unnest(:user_ids::uuid[]) AS i (id) ON c.user_id = i.id
    WHERE
        s.customer_id = c.id
        AND s.user_id IS DISTINCT FROM c.user_id
        AND NOT :is_dry_run
),

compared AS (
    SELECT
        w.id,
        w.customer_id,
        w.has_unknown_price,
        array_remove(
            ARRAY[
                CASE
                    WHEN u.stripe_customer_id IS DISTINCT FROM w.customer_id
                        THEN 'unlinked'
                END,
                CASE WHEN u.created_at <> w.created_at THEN 'created_at' END,
                CASE
                    WHEN
                        (u.stripe_subscription_id, u.subscription_status)
                        IS DISTINCT FROM (w.subscription_id, w.status)
                        THEN 'status'
                END,
                CASE
                    WHEN
                        (u.stripe_price_id, u.base_quota)
                        IS DISTINCT FROM (w.price_id, w.base_quota)
                        THEN 'price'
                END,
                CASE
                    WHEN
                        (u.quota_anchor, u.next_quota_reset)
                        IS DISTINCT FROM (w.anchor, w.reset)
                        THEN 'period'
                END
            ],
            NULL
        ) AS differences
    FROM wanted AS w
    INNER JOIN app.users AS u ON w.id = u.id
),

written AS (
    UPDATE app.users AS u
    SET
        stripe_customer_id = w.customer_id,
        created_at = w.created_at,
        stripe_subscription_id = w.subscription_id,
        stripe_price_id = w.price_id,
        subscription_status = w.status,
        base_quota = w.base_quota,
        quota_anchor = w.anchor,
        next_quota_reset = w.reset
    FROM wanted AS w
    INNER JOIN compared AS c ON w.id = c.id
    WHERE u.id = w.id AND c.differences <> '{}' AND NOT :is_dry_run
)

SELECT
    c.id,
    c.customer_id,
    c.differences,
    COALESCE(c.has_unknown_price, FALSE) AS has_unknown_price
FROM compared AS c
ORDER BY c.id
LIMIT cardinality(:user_ids::uuid[]);
