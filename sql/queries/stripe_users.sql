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

-- name: cut_usage :one
-- After the commit that has moved the periods of these users: cuts their sums of the
-- day at the new boundary. Returns the number of days that had to be cut.
SELECT COALESCE(sum(app.cut_usage(u.id)), 0)::bigint AS days
FROM unnest(:user_ids::uuid[]) AS u (id);
