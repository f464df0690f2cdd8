-- Loses nothing.
-- transactional: false

-- For list_unlisted_subscriptions, newest first as in Stripe's lists.
CREATE INDEX CONCURRENTLY stripe_subscriptions_created_at_idx
ON app.stripe_subscriptions (created_at, id);
