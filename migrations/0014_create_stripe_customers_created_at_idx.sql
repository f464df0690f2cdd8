-- Indexes of a time and an id were taken for lookups by id, and read as a whole.
-- transactional: false

-- For list_unlisted_customers, newest first as in Stripe's lists, and
-- list_name_only_customers. Without the id, as stripe_events_received_at_idx.
CREATE INDEX CONCURRENTLY stripe_customers_created_at_idx
ON app.stripe_customers (created_at);
