-- name: sync_users :many
-- Updates the users from the mirror; returns the differences. Locks them in id order.
SELECT
    u.id,
    u.customer_id,
    u.subscription_id,
    u.differences,
    u.has_unknown_price
FROM app.sync_stripe_users(:user_ids::uuid[]) AS u
ORDER BY u.id
LIMIT cardinality(:user_ids::uuid[]);
