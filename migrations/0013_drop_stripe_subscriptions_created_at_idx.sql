-- Indexes of a time and an id were taken for lookups by id, and read as a whole.
-- transactional: false

DROP INDEX CONCURRENTLY app.stripe_subscriptions_created_at_idx;
