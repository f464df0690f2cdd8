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

-- name: mark_subscription_missing :optional
-- Stripe knows nothing of it any more, as when the data of a test account are deleted.
UPDATE app.stripe_subscriptions AS s
SET
    status = 'canceled',
    as_of = GREATEST(s.as_of, :as_of::timestamptz),
    is_provisional = FALSE
WHERE s.id = :id
RETURNING s.id, s.user_id;

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
