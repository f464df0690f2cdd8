-- Loses nothing.
-- transactional: false

DROP INDEX CONCURRENTLY app.stripe_subscriptions_created_at_idx;
