-- Indexes of a time and an id were taken for lookups by id, and read as a whole.
-- transactional: false

-- For list_unlisted_subscriptions, newest first as in Stripe's lists. Without the id,
-- as stripe_events_received_at_idx.
CREATE INDEX CONCURRENTLY stripe_subscriptions_created_at_idx
ON app.stripe_subscriptions (created_at);
