-- name: upsert_snapshots :many
-- The customers are locked; their users need sync_users.
SELECT
    p.id,
    p.result,
    p.differences,
    p.user_id,
    p.released_user_id,
    p.proposed_user_id
FROM app.upsert_stripe_snapshots(
    :object_type, :snapshots::jsonb, :source, :can_fetch, :match_email, :is_dry_run
) AS p
ORDER BY p.id
LIMIT jsonb_array_length(:snapshots::jsonb);

-- name: sync_users :many
-- What the mirror says; their rows are locked in the order of their ids.
SELECT
    u.id,
    u.customer_id,
    u.subscription_id,
    u.differences,
    u.has_unknown_price
FROM app.sync_stripe_users(:user_ids::uuid[], :is_dry_run) AS u
ORDER BY u.id
LIMIT cardinality(:user_ids::uuid[]);
