-- name: upsert_views :many
-- The customers are locked. With users, these get at once what the mirror says.
SELECT
    p.verdict,
    p.differences,
    p.user_id,
    p.released_user_id,
    p.proposed_user_id,
    v.view ->> 'id' AS id
FROM jsonb_array_elements(:views::jsonb) AS v (view)
CROSS JOIN LATERAL app.put_stripe_view(
    :noun, v.view, :source, :can_ask, :match_email, :is_dry_run, :with_users
) AS p
ORDER BY v.view ->> 'id'
LIMIT jsonb_array_length(:views::jsonb);

-- name: sync_users :many
-- Their rows are locked in the order of the ids as they are given.
SELECT
    i.id,
    u.customer_id,
    u.subscription_id,
    u.differences,
    u.has_unknown_price
FROM unnest(:user_ids::uuid[]) AS i (id)
CROSS JOIN LATERAL app.sync_stripe_user(i.id, :is_dry_run) AS u
ORDER BY i.id
LIMIT cardinality(:user_ids::uuid[]);
