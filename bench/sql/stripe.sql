-- name: insert_stripe_users :many
-- Users of whom a customer says whose he is.
INSERT INTO app.users AS u (email)
SELECT 'customer' || n || '@bench.example' AS email
FROM generate_series(1, :users::integer) AS n
RETURNING u.id;

-- name: insert_event_plain :rowcount
-- The floor of a webhook, first half: the event is kept.
INSERT INTO app.stripe_events (
    id, type, api_version, event_created_at, payload, status, attempts, processed_at
)
VALUES (
    :id, :type, :api_version, :event_created_at, :payload::jsonb, 'applied', 1, now()
)
ON CONFLICT (id) DO NOTHING;

-- name: update_user_plain :rowcount
-- The floor of a webhook, second half: the user is changed.
UPDATE app.users AS u
SET subscription_status = :status, stripe_price_id = :price_id
WHERE u.stripe_customer_id = :customer_id;
