-- name: get_entitlement :one
-- From the view, not from the users row: also correct before the next sync. No reason
-- means that a plan has the price.
SELECT
    e.id AS user_id,
    e.stripe_customer_id,
    e.stripe_subscription_id,
    e.stripe_price_id,
    pp.plan_id,
    e.subscription_status,
    app.is_active_status(e.subscription_status) AS subscription_active,
    e.base_quota,
    e.ends_at,
    e.trial_end,
    e.pause_behavior,
    e.pause_resumes_at,
    e.reason,
    e.differences
FROM app.stripe_entitlements AS e
LEFT JOIN app.plan_prices AS pp
    ON e.reason IS NULL AND e.stripe_price_id = pp.stripe_price_id
WHERE e.id = :user_id;

-- name: list_entitlements :many
-- By id, with the conditions of list_user_quotas.
SELECT
    e.id AS user_id,
    e.stripe_customer_id,
    e.stripe_subscription_id,
    e.stripe_price_id,
    pp.plan_id,
    e.subscription_status,
    app.is_active_status(e.subscription_status) AS subscription_active,
    e.base_quota,
    e.ends_at,
    e.trial_end,
    e.pause_behavior,
    e.pause_resumes_at,
    e.reason,
    e.differences
FROM app.stripe_entitlements AS e
LEFT JOIN app.plan_prices AS pp
    ON e.reason IS NULL AND e.stripe_price_id = pp.stripe_price_id
WHERE e.id >= COALESCE(:after::uuid, '00000000-0000-0000-0000-000000000000')
    AND e.id IS DISTINCT FROM :after::uuid
ORDER BY e.id
LIMIT :limit;
