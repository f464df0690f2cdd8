-- name: find_subscription :optional
-- The mirrored subscription, ended or not.
SELECT
    s.id,
    s.customer_id,
    s.status,
    s.billing_cycle_anchor,
    s.cancel_at_period_end,
    s.canceled_at,
    s.created_at,
    s.as_of,
    s.is_provisional,
    s.cancel_at,
    s.trial_end,
    s.pause_behavior,
    s.pause_resumes_at,
    s.claimed_user_id
FROM app.stripe_subscriptions AS s
WHERE s.id = :id;

-- name: list_subscription_items :many
-- All items of a mirrored subscription.
SELECT
    i.subscription_id,
    i.id,
    i.price_id,
    i.unit_amount,
    i.quantity,
    i.current_period_start,
    i.current_period_end
FROM app.stripe_subscription_items AS i
WHERE i.subscription_id = :subscription_id
ORDER BY i.id
LIMIT :limit;

-- name: upsert_subscriptions :many
-- As upsert_customers. A subscription may claim a user for its customer.
SELECT
    s.id,
    s.result,
    s.differences,
    s.user_id,
    s.released_user_id,
    NULL::uuid AS proposed_user_id,
    s.conflicting_user_id
FROM app.upsert_stripe_subscriptions(
    :snapshots::jsonb, :source, :can_fetch
) AS s
ORDER BY s.id
LIMIT jsonb_array_length(:snapshots::jsonb);

-- name: mark_subscription_provisional :rowcount
-- For an event that names the subscription and contains no snapshot of it.
UPDATE app.stripe_subscriptions AS s
SET is_provisional = TRUE
WHERE
    s.id = :id
    AND date_trunc('second', s.as_of) <= :as_of::timestamptz;

-- name: mark_subscription_missing :optional
-- For a subscription that Stripe does not have, as after a test account was cleared.
UPDATE app.stripe_subscriptions AS s
SET
    status = 'canceled',
    as_of = GREATEST(s.as_of, :as_of::timestamptz),
    is_provisional = FALSE
WHERE s.id = :id
RETURNING s.id, (
    SELECT COALESCE(c.user_id, c.holder_id)
    FROM app.find_customer_claim(s.customer_id) AS c
) AS user_id;

-- name: list_unlisted_subscriptions :many
-- As list_unlisted_customers, without subscriptions that have ended.
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
