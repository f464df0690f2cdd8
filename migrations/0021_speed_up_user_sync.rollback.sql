-- Loses nothing.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

CREATE OR REPLACE FUNCTION app.get_paid_period(
    is_paid boolean,
    anchor timestamptz,
    period_start timestamptz,
    period_end timestamptz
)
RETURNS TABLE (quota_anchor timestamptz, next_quota_reset timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN NOT is_paid THEN NULL
            WHEN p.is_on_anchor THEN anchor
            WHEN p.is_month THEN period_end
            ELSE COALESCE(anchor, period_end)
        END AS quota_anchor,
        CASE WHEN is_paid AND (p.is_on_anchor OR p.is_month) THEN period_end END
            AS next_quota_reset
    FROM (
        SELECT
            is_paid AND period_end = app.get_period_end(anchor, period_start)
                AS is_on_anchor,
            period_end - period_start
                BETWEEN interval '28 days' AND interval '31 days' AS is_month
        LIMIT ALL
    ) AS p;
END;

COMMENT ON FUNCTION app.get_paid_period(
    boolean, timestamptz, timestamptz, timestamptz
) IS
    'Anchor and reset of the quota by a paid period; NULL where the user''s stay.';

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
    best.ends_at,
    best.trial_end,
    best.pause_behavior,
    best.pause_resumes_at,
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
        WHEN best.is_active AND best.plan_id IS NOT NULL THEN NULL
        WHEN e.stripe_customer_id IS NULL THEN 'no_customer'
        WHEN best.is_deleted THEN 'deleted_customer'
        WHEN best.subscription_id IS NULL THEN 'no_subscription'
        WHEN NOT best.is_active THEN 'inactive_subscription'
        WHEN best.is_price_known THEN 'no_quantity'
        ELSE 'unknown_price'
    END AS reason
FROM app.users AS u
LEFT JOIN LATERAL app.find_best_item(u.id, u.stripe_customer_id) AS best ON TRUE
CROSS JOIN LATERAL app.get_paid_period(
    -- A price that is not known to be zero.
    best.status = 'active' AND best.plan_id IS NOT NULL
    AND best.unit_amount IS DISTINCT FROM 0,
    best.anchor,
    best.period_start,
    best.period_end
) AS paid
LEFT JOIN app.plans AS free ON free.id = 'free'
CROSS JOIN LATERAL (
    SELECT
        best.customer_id AS stripe_customer_id,
        COALESCE(best.customer_created_at, u.created_at) AS created_at,
        best.subscription_id AS stripe_subscription_id,
        best.price_id AS stripe_price_id,
        best.status AS subscription_status,
        COALESCE(
            CASE WHEN best.is_active AND best.plan_id IS NOT NULL THEN best.credits END,
            free.monthly_credits,
            u.base_quota
        ) AS base_quota,
        COALESCE(paid.quota_anchor, u.quota_anchor) AS quota_anchor,
        CASE
            WHEN paid.next_quota_reset IS NOT NULL THEN paid.next_quota_reset
            -- A lapsed reset on an unchanged anchor already means the next boundary.
            WHEN paid.quota_anchor <> u.quota_anchor
                OR (paid.quota_anchor IS NOT NULL AND u.next_quota_reset > now())
                THEN app.get_period_end(paid.quota_anchor, now())
            ELSE u.next_quota_reset
        END AS next_quota_reset,
        COALESCE(best.is_active AND NOT best.is_price_known, FALSE) AS has_unknown_price
    LIMIT ALL
) AS e;

COMMENT ON VIEW app.stripe_entitlements IS
    'What each user should have by the mirror; sync_stripe_users copies it to users.';
COMMENT ON COLUMN app.stripe_entitlements.id IS
    'The user.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_customer_id IS
    'Customer of the best item; without one, the linked or oldest; NULL if none.';
COMMENT ON COLUMN app.stripe_entitlements.created_at IS
    'When the customer was created at Stripe; the user''s created_at if not known.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_subscription_id IS
    'Subscription of the best item, find_best_item; NULL if there is none.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_price_id IS
    'Price of the best item; NULL if there is none or it has no price.';
COMMENT ON COLUMN app.stripe_entitlements.subscription_status IS
    'Stripe''s status; canceled if the customer is deleted; NULL if no subscription.';
COMMENT ON COLUMN app.stripe_entitlements.base_quota IS
    'Credits a period: of the plan that is bought x quantity, else of free.';
COMMENT ON COLUMN app.stripe_entitlements.quota_anchor IS
    'Periods begin at the anchor plus whole months in UTC; only paid plans move it.';
COMMENT ON COLUMN app.stripe_entitlements.next_quota_reset IS
    'When the period ends; only paid plans move it; NULL if it never resets.';
COMMENT ON COLUMN app.stripe_entitlements.ends_at IS
    'When the subscription will end by cancellation; NULL if it renews.';
COMMENT ON COLUMN app.stripe_entitlements.trial_end IS
    'When the trial ends or ended; NULL if there was none.';
COMMENT ON COLUMN app.stripe_entitlements.pause_behavior IS
    'Stripe''s word for paused collection, which takes nothing away; else NULL.';
COMMENT ON COLUMN app.stripe_entitlements.pause_resumes_at IS
    'When paused collection resumes; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_entitlements.has_unknown_price IS
    'Whether the subscription entitles and no plan has the price of its best item.';
COMMENT ON COLUMN app.stripe_entitlements.differences IS
    'Groups of columns that differ from users, docs/stripe.md; empty if none.';
COMMENT ON COLUMN app.stripe_entitlements.reason IS
    'Why no paid plan applies: no_customer, deleted_customer, no_subscription,'
    ' inactive_subscription, no_quantity, unknown_price; NULL if one applies.';

CREATE OR REPLACE FUNCTION app.sync_stripe_users(user_ids uuid[])
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
SET enable_memoize = off
AS $$
#variable_conflict use_column
BEGIN
    -- Transactions of two customers of one user queue here: the statement below sees
    -- what the first one committed.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = ANY(user_ids)
    ORDER BY u.id
    FOR NO KEY UPDATE;

    RETURN QUERY
    WITH entitled AS MATERIALIZED (
        -- No other column, because all of a materialized subquery are evaluated.
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
    )

    SELECT
        e.id,
        e.stripe_customer_id AS customer_id,
        e.stripe_subscription_id AS subscription_id,
        e.differences,
        e.has_unknown_price
    FROM entitled AS e;
END;
$$;

COMMENT ON FUNCTION app.sync_stripe_users(uuid[]) IS
    'Updates users from the Stripe mirror; returns the differences.';
