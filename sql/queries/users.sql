-- name: create_user :optional
-- Quota and referral code are column defaults. Returns no row if the address is taken,
-- instead of an error that would abort the caller's transaction. The queries of this
-- file list the columns of User: `*` would break running programs when a column is
-- added.
INSERT INTO app.users AS u (email, name)
VALUES (:email, :name)
ON CONFLICT (lower(email)) DO NOTHING
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: get_user :one
-- Anonymized users are included, because their messages are kept.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE u.id = :user_id;

-- name: find_user_by_email :optional
-- Ignoring case, by users_lower_email_idx.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE lower(u.email) = lower(:email);

-- name: list_users :many
-- By id, the only order that never changes: the Stripe sync updates created_at.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE :after::uuid IS NULL OR u.id > :after
ORDER BY u.id
LIMIT :limit;

-- name: set_user_profile :optional
-- Sets both columns, so that NULL clears them.
UPDATE app.users AS u
SET
    name = :name,
    image_url = :image_url
WHERE u.id = :user_id
    AND u.anonymized_at IS NULL
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: set_user_email :optional
-- A new address is unverified; the same one in another case stays verified.
UPDATE app.users AS u
SET
    email = :email,
    email_verified_at
    = CASE WHEN lower(u.email) = lower(:email) THEN u.email_verified_at END
WHERE u.id = :user_id
    AND u.anonymized_at IS NULL
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: mark_user_email_verified :optional
-- Match the address too: the user may have changed it since verification was requested.
-- The first verification sets the time, and a trigger then deletes the user's sessions.
-- The trigger's lock is taken first, because upgrading the UPDATE's lock can deadlock.
WITH locked AS MATERIALIZED (
    SELECT u.id
    FROM app.users AS u
    WHERE u.id = :user_id
        AND lower(u.email) = lower(:email)
        AND u.email_verified_at IS NULL
    FOR UPDATE
)

UPDATE app.users AS u
SET email_verified_at = COALESCE(u.email_verified_at, now())
WHERE u.id = :user_id
    AND lower(u.email) = lower(:email)
    -- Always true; makes the UPDATE wait for the lock.
    AND (SELECT count(*) FROM locked) >= 0
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: anonymize_user :optional
-- Erases personal data and keeps messages. Returns no row for an unknown user.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.anonymize_user(:user_id) AS u;

-- name: export_user :many
-- All that is stored about a user, one JSON object a row, with the kind as first key.
-- One statement, so that all rows are of one snapshot. Exact numbers are strings. The
-- messages of fingerprints are anonymous: only those of fingerprints that no other user
-- has are included. Ids of other users are left out, and so are the hashes of tokens.
-- A subquery with ORDER BY is run for each payer, by an index.
WITH person AS MATERIALIZED (
    SELECT u.id
    FROM app.users AS u
    WHERE u.id = :user_id
),

user_fingerprint AS MATERIALIZED (
    SELECT
        f.fingerprint_id,
        f.is_shared
    FROM person AS n
    CROSS JOIN LATERAL app.list_user_fingerprints(n.id) AS f
),

payer AS MATERIALIZED (
    SELECT
        n.id,
        FALSE AS is_anonymous
    FROM person AS n
    UNION ALL
    SELECT
        f.fingerprint_id AS id,
        TRUE AS is_anonymous
    FROM user_fingerprint AS f
    WHERE NOT f.is_shared
),

customer AS MATERIALIZED (
    SELECT k.id
    FROM person AS n
    CROSS JOIN LATERAL (
        SELECT c.id
        FROM app.stripe_customers AS c
        WHERE c.user_id = n.id
        ORDER BY c.id
    ) AS k
    UNION
    SELECT u.stripe_customer_id AS id
    FROM app.users AS u
    WHERE u.id = :user_id
        AND u.stripe_customer_id IS NOT NULL
)

SELECT
    'user' AS kind,
    json_build_object(
        'kind', 'user',
        'id', u.id,
        'email', u.email,
        'name', u.name,
        'email_verified_at', u.email_verified_at,
        'image_url', u.image_url,
        'base_quota', u.base_quota::text,
        'referral_credits', u.referral_credits::text,
        'quota', u.quota::text,
        'quota_anchor', u.quota_anchor,
        'next_quota_reset', u.next_quota_reset,
        'quota_period_start', u.quota_period_start,
        'referral_code', u.referral_code,
        'referral_limit', u.referral_limit,
        'referral_count', u.referral_count,
        'stripe_customer_id', u.stripe_customer_id,
        'stripe_subscription_id', u.stripe_subscription_id,
        'stripe_price_id', u.stripe_price_id,
        'subscription_status', u.subscription_status,
        'subscription_active', u.subscription_active,
        'created_at', u.created_at,
        'updated_at', u.updated_at,
        'anonymized_at', u.anonymized_at
    )::text AS json_text
FROM person AS n
INNER JOIN app.users AS u ON n.id = u.id
UNION ALL
SELECT
    'session' AS kind,
    json_build_object(
        'kind', 'session',
        'fingerprint_id', s.fingerprint_id,
        'created_at', s.created_at,
        'expires_at', s.expires_at
    )::text AS json_text
FROM person AS n
CROSS JOIN LATERAL (
    SELECT
        w.fingerprint_id,
        w.created_at,
        w.expires_at
    FROM app.sessions AS w
    WHERE w.user_id = n.id
    ORDER BY w.created_at
) AS s
UNION ALL
SELECT
    'fingerprint' AS kind,
    json_build_object(
        'kind', 'fingerprint',
        'id', f.id,
        'is_shared', n.is_shared,
        'sig_hash', f.sig_hash,
        'base_quota', f.base_quota::text,
        'quota_anchor', f.quota_anchor,
        'next_quota_reset', f.next_quota_reset,
        'quota_period_start', f.quota_period_start,
        'created_at', f.created_at
    )::text AS json_text
FROM user_fingerprint AS n
CROSS JOIN LATERAL (
    SELECT
        d.id,
        d.sig_hash,
        d.base_quota,
        d.quota_anchor,
        d.next_quota_reset,
        d.quota_period_start,
        d.created_at
    FROM app.fingerprints AS d
    WHERE d.id = n.fingerprint_id
    ORDER BY d.id
) AS f
UNION ALL
SELECT
    'payload' AS kind,
    json_build_object(
        'kind', 'payload',
        'subject_id', p.subject_id,
        'message_id', p.message_id,
        'finished_at', p.finished_at,
        'request', p.request,
        'response', p.response
    )::text AS json_text
FROM (
    SELECT array_agg(n.id) AS ids
    FROM payer AS n
) AS n
CROSS JOIN LATERAL app.list_detached_payloads(n.ids) AS p
UNION ALL
SELECT
    'payload' AS kind,
    json_build_object(
        'kind', 'payload',
        'subject_id', n.id,
        'message_id', p.message_id,
        'finished_at', p.finished_at,
        'request', p.request,
        'response', p.response
    )::text AS json_text
FROM payer AS n
CROSS JOIN LATERAL (
    SELECT
        w.message_id,
        w.finished_at,
        w.request,
        w.response
    FROM app.message_payloads AS w
    WHERE w.subject_id = n.id
    ORDER BY w.message_id
) AS p
UNION ALL
SELECT
    'message' AS kind,
    json_build_object(
        'kind', 'message',
        'is_anonymous', n.is_anonymous,
        'subject_id', n.id,
        'id', m.id,
        'fingerprint_id', m.fingerprint_id,
        'finished_at', m.finished_at,
        'recorded_at', m.recorded_at,
        'provider', m.provider,
        'model', m.model,
        'input_tokens', m.input_tokens,
        'cache_creation_input_tokens', m.cache_creation_input_tokens,
        'cache_read_input_tokens', m.cache_read_input_tokens,
        'output_tokens', m.output_tokens,
        'total_tokens', m.total_tokens,
        'cost', m.cost::text,
        'credits', m.credits::text,
        'latency_ms', m.latency_ms,
        'client_id', m.client_id,
        'client_request_id', m.client_request_id
    )::text AS json_text
FROM payer AS n
CROSS JOIN LATERAL (
    SELECT
        w.id,
        w.fingerprint_id,
        w.finished_at,
        w.recorded_at,
        w.provider,
        w.model,
        w.input_tokens,
        w.cache_creation_input_tokens,
        w.cache_read_input_tokens,
        w.output_tokens,
        w.total_tokens,
        w.cost,
        w.credits,
        w.latency_ms,
        w.client_id,
        w.client_request_id
    FROM app.messages AS w
    WHERE w.subject_id = n.id
    ORDER BY w.finished_at
) AS m
UNION ALL
SELECT
    'usage' AS kind,
    json_build_object(
        'kind', 'usage',
        'is_anonymous', n.is_anonymous,
        'subject_id', n.id,
        'day', d.day,
        'messages', d.messages,
        'input_tokens', d.input_tokens,
        'cache_creation_input_tokens', d.cache_creation_input_tokens,
        'cache_read_input_tokens', d.cache_read_input_tokens,
        'output_tokens', d.output_tokens,
        'total_tokens', d.total_tokens,
        'cost', d.cost::text,
        'credits', d.credits::text
    )::text AS json_text
FROM payer AS n
CROSS JOIN LATERAL (
    SELECT
        w.day,
        w.messages,
        w.input_tokens,
        w.cache_creation_input_tokens,
        w.cache_read_input_tokens,
        w.output_tokens,
        w.total_tokens,
        w.cost,
        w.credits
    FROM app.usage_daily AS w
    WHERE w.subject_id = n.id
    ORDER BY w.day
) AS d
UNION ALL
SELECT
    'referral' AS kind,
    json_build_object(
        'kind', 'referral',
        'is_referrer', r.is_referrer,
        'status', r.status,
        'credits', r.credits::text,
        'created_at', r.created_at,
        'completed_at', r.completed_at
    )::text AS json_text
FROM person AS n
CROSS JOIN LATERAL (
    SELECT
        w.referrer_id = n.id AS is_referrer,
        w.status,
        w.credits,
        w.created_at,
        w.completed_at
    FROM app.referrals AS w
    WHERE n.id IN (w.referrer_id, w.referred_id)
    ORDER BY w.created_at
) AS r
UNION ALL
SELECT
    'stripe_customer' AS kind,
    json_build_object(
        'kind', 'stripe_customer',
        'id', c.id,
        'is_linked', c.is_linked,
        'is_deleted', c.is_deleted,
        'created_at', c.created_at,
        'as_of', c.as_of,
        'is_provisional', c.is_provisional,
        'is_claimed', c.is_claimed,
        'claim_source', c.claim_source
    )::text AS json_text
FROM customer AS k
CROSS JOIN LATERAL (
    SELECT
        w.id,
        COALESCE(w.user_id = :user_id, FALSE) AS is_linked,
        w.is_deleted,
        w.created_at,
        w.as_of,
        w.is_provisional,
        COALESCE(w.claimed_user_id = :user_id, FALSE) AS is_claimed,
        w.claim_source
    FROM app.stripe_customers AS w
    WHERE w.id = k.id
    ORDER BY w.id
) AS c
UNION ALL
SELECT
    'stripe_subscription' AS kind,
    json_build_object(
        'kind', 'stripe_subscription',
        'id', s.id,
        'customer_id', k.id,
        'status', s.status,
        'billing_cycle_anchor', s.billing_cycle_anchor,
        'cancel_at_period_end', s.cancel_at_period_end,
        'canceled_at', s.canceled_at,
        'created_at', s.created_at,
        'as_of', s.as_of,
        'is_provisional', s.is_provisional,
        'cancel_at', s.cancel_at,
        'trial_end', s.trial_end,
        'pause_behavior', s.pause_behavior,
        'pause_resumes_at', s.pause_resumes_at,
        'is_claimed', s.is_claimed
    )::text AS json_text
FROM customer AS k
CROSS JOIN LATERAL (
    SELECT
        w.id,
        w.status,
        w.billing_cycle_anchor,
        w.cancel_at_period_end,
        w.canceled_at,
        w.created_at,
        w.as_of,
        w.is_provisional,
        w.cancel_at,
        w.trial_end,
        w.pause_behavior,
        w.pause_resumes_at,
        COALESCE(w.claimed_user_id = :user_id, FALSE) AS is_claimed
    FROM app.stripe_subscriptions AS w
    WHERE w.customer_id = k.id
    ORDER BY w.created_at
) AS s
UNION ALL
SELECT
    'stripe_subscription_item' AS kind,
    json_build_object(
        'kind', 'stripe_subscription_item',
        'subscription_id', i.subscription_id,
        'id', i.id,
        'price_id', i.price_id,
        'unit_amount', i.unit_amount::text,
        'quantity', i.quantity,
        'current_period_start', i.current_period_start,
        'current_period_end', i.current_period_end
    )::text AS json_text
FROM customer AS k
CROSS JOIN LATERAL (
    SELECT
        w.subscription_id,
        w.id,
        w.price_id,
        w.unit_amount,
        w.quantity,
        w.current_period_start,
        w.current_period_end
    FROM app.stripe_subscriptions AS s
    INNER JOIN app.stripe_subscription_items AS w ON s.id = w.subscription_id
    WHERE s.customer_id = k.id
    ORDER BY w.subscription_id, w.id
) AS i
UNION ALL
SELECT
    'entitlement' AS kind,
    json_build_object(
        'kind', 'entitlement',
        'stripe_customer_id', e.stripe_customer_id,
        'stripe_subscription_id', e.stripe_subscription_id,
        'stripe_price_id', e.stripe_price_id,
        'subscription_status', e.subscription_status,
        'base_quota', e.base_quota::text,
        'ends_at', e.ends_at,
        'trial_end', e.trial_end,
        'pause_behavior', e.pause_behavior,
        'pause_resumes_at', e.pause_resumes_at,
        'reason', e.reason
    )::text AS json_text
FROM app.stripe_entitlements AS e
WHERE e.id = :user_id
UNION ALL
SELECT
    'stripe_event' AS kind,
    json_build_object(
        'kind', 'stripe_event',
        'id', e.id,
        'type', e.type,
        'api_version', e.api_version,
        'event_created_at', e.event_created_at,
        'payload', e.payload,
        'status', e.status,
        'attempts', e.attempts,
        'last_error', e.last_error,
        'received_at', e.received_at,
        'processed_at', e.processed_at
    )::text AS json_text
FROM person AS n
CROSS JOIN LATERAL app.list_user_events(n.id) AS e;
