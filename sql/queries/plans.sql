-- name: list_plans :many
-- Smallest first.
SELECT
    p.id,
    p.stripe_price_id,
    p.monthly_credits
FROM app.plans AS p
ORDER BY p.monthly_credits, p.id
LIMIT :limit;

-- name: get_plan :one
-- By primary key.
SELECT
    p.id,
    p.stripe_price_id,
    p.monthly_credits
FROM app.plans AS p
WHERE p.id = :plan_id;

-- name: set_plan_price :optional
-- The Stripe sync looks a plan up by the subscription's price; NULL removes the price.
UPDATE app.plans AS p
SET stripe_price_id = :stripe_price_id
WHERE p.id = :plan_id
RETURNING
    p.id,
    p.stripe_price_id,
    p.monthly_credits;
