-- Loses nothing.

-- transactional: false

DROP INDEX CONCURRENTLY app.stripe_customers_pending_claim_idx;
