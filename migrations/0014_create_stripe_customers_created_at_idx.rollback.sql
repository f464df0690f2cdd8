-- Loses nothing.
-- transactional: false

DROP INDEX CONCURRENTLY app.stripe_customers_created_at_idx;
