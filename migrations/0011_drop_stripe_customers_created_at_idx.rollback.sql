-- Loses nothing.
-- transactional: false

-- For list_unlisted_customers, newest first as in Stripe's lists, and
-- list_name_only_customers.
CREATE INDEX CONCURRENTLY stripe_customers_created_at_idx
ON app.stripe_customers (created_at, id);
