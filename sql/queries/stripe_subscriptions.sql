-- name: find_subscription :optional
-- The mirrored subscription, ended or not.
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

-- name: upsert_subscriptions :many
-- As upsert_customers; a subscription changes no link.
SELECT
    s.id,
    s.result,
    s.differences,
    s.user_id,
    NULL::uuid AS released_user_id,
    NULL::uuid AS proposed_user_id
FROM app.upsert_stripe_subscriptions(
    :snapshots::jsonb, :source, :can_fetch, :is_dry_run
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
RETURNING s.id, s.user_id;

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
