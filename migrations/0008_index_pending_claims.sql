-- For create_user: claims on users who do not exist yet.

-- transactional: false

CREATE INDEX CONCURRENTLY stripe_customers_pending_claim_idx
ON app.stripe_customers (claimed_user_id)
WHERE claimed_user_id IS DISTINCT FROM user_id AND claimed_user_id IS NOT NULL;
