-- What users get from Stripe. The view app.stripe_entitlements says what each user
-- should have; app.sync_stripe_users writes it.

-- The linter takes parameters for columns without a table.
-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

-- No row: no plan has the price. Quantity 0 buys none, and no quantity counts as 1.
CREATE OR REPLACE FUNCTION app.find_bought_plan(price_id text, quantity bigint)
RETURNS TABLE (is_price_known boolean, plan_id text, credits numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        TRUE AS is_price_known,
        CASE WHEN q.units > 0 THEN p.id END AS plan_id,
        p.monthly_credits * NULLIF(q.units, 0) AS credits
    FROM app.plan_prices AS pp
    INNER JOIN app.plans AS p ON pp.plan_id = p.id
    CROSS JOIN (VALUES (COALESCE(quantity, 1))) AS q (units)
    WHERE pp.stripe_price_id = price_id
    LIMIT 1;
END;

COMMENT ON FUNCTION app.find_bought_plan(text, bigint) IS
    'The plan that an item buys, and its credits.';

-- Among the items of the user's live customers: the subscription entitles; the price
-- buys a plan; active or trialing before past_due; most credits; latest period end.
CREATE OR REPLACE FUNCTION app.find_best_item(user_id uuid, linked_id text)
RETURNS TABLE (
    customer_id text,
    is_deleted boolean,
    customer_created_at timestamptz,
    subscription_id text,
    status text,
    is_active boolean,
    anchor timestamptz,
    ends_at timestamptz,
    trial_end timestamptz,
    pause_behavior text,
    pause_resumes_at timestamptz,
    price_id text,
    unit_amount numeric,
    period_start timestamptz,
    period_end timestamptz,
    is_price_known boolean,
    plan_id text,
    credits numeric
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        c.id AS customer_id,
        c.is_deleted,
        c.created_at AS customer_created_at,
        s.id AS subscription_id,
        t.status,
        app.is_active_status(t.status) AS is_active,
        s.billing_cycle_anchor AS anchor,
        -- LEAST ignores NULL.
        LEAST(
            s.cancel_at, CASE WHEN s.cancel_at_period_end THEN i.current_period_end END
        ) AS ends_at,
        s.trial_end,
        s.pause_behavior,
        s.pause_resumes_at,
        i.price_id,
        i.unit_amount,
        i.current_period_start AS period_start,
        i.current_period_end AS period_end,
        p.is_price_known IS TRUE AS is_price_known,
        p.plan_id,
        p.credits
    FROM app.list_user_customers(find_best_item.user_id, linked_id) AS c
    LEFT JOIN LATERAL (
        SELECT
            k.id,
            k.status,
            k.billing_cycle_anchor,
            k.cancel_at,
            k.cancel_at_period_end,
            k.trial_end,
            k.pause_behavior,
            k.pause_resumes_at
        FROM app.stripe_subscriptions AS k
        WHERE k.customer_id = c.id
        LIMIT ALL
    ) AS s ON TRUE
    LEFT JOIN LATERAL (
        SELECT
            k.id,
            k.price_id,
            k.unit_amount,
            k.quantity,
            k.current_period_start,
            k.current_period_end
        FROM app.stripe_subscription_items AS k
        WHERE k.subscription_id = s.id
        LIMIT ALL
    ) AS i ON TRUE
    LEFT JOIN LATERAL app.find_bought_plan(i.price_id, i.quantity) AS p ON TRUE
    CROSS JOIN LATERAL (
        SELECT
            -- Deleting a customer cancels its subscriptions, even if no event says so.
            CASE
                WHEN c.is_deleted AND s.status <> 'incomplete_expired' THEN 'canceled'
                ELSE s.status
            END AS status
    ) AS t
    ORDER BY
        c.is_deleted,
        app.is_active_status(t.status) DESC,
        p.plan_id IS NULL,
        t.status = 'past_due',
        p.credits DESC NULLS LAST,
        i.current_period_end DESC NULLS LAST,
        s.id,
        i.id,
        -- Customers without subscriptions.
        c.id = linked_id DESC NULLS LAST,
        c.created_at,
        c.id
    LIMIT 1;
END;

COMMENT ON FUNCTION app.find_best_item(uuid, text) IS
    'The subscription item that decides what the user has, and its customer.';

-- Only what is paid for moves the quota's period. It is the paid one if that ends on
-- Stripe's anchor or is a month; a longer one resets monthly. NULL: the user keeps its
-- anchor, or its reset.
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
            WHEN NOT p.is_paid THEN NULL
            WHEN p.is_on_anchor THEN anchor
            WHEN p.is_month THEN period_end
            ELSE COALESCE(anchor, period_end)
        END AS quota_anchor,
        CASE WHEN p.is_paid AND (p.is_on_anchor OR p.is_month) THEN period_end END
            AS next_quota_reset
    FROM (
        SELECT
            is_paid,
            is_paid AND period_end = app.get_period_end(anchor, period_start)
                AS is_on_anchor,
            period_end - period_start
                BETWEEN interval '28 days' AND interval '31 days' AS is_month
        LIMIT ALL
    ) AS p
    LIMIT ALL;
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
CROSS JOIN LATERAL (
    SELECT
        best.customer_id AS stripe_customer_id,
        COALESCE(best.customer_created_at, u.created_at) AS created_at,
        best.subscription_id AS stripe_subscription_id,
        best.price_id AS stripe_price_id,
        best.status AS subscription_status,
        COALESCE(
            CASE WHEN best.is_active AND best.plan_id IS NOT NULL THEN best.credits END,
            (
                SELECT free.monthly_credits
                FROM app.plans AS free
                WHERE free.id = 'free'
            ),
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
SET enable_bitmapscan = off
SET enable_hashjoin = off
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
