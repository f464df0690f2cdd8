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
    r.kind,
    row_to_json(r)::text AS json_text
FROM (
    SELECT
        'user' AS kind,
        u.id,
        u.email,
        u.name,
        u.email_verified_at,
        u.image_url,
        u.base_quota::text,
        u.referral_credits::text,
        u.quota::text,
        u.quota_anchor,
        u.next_quota_reset,
        u.quota_period_start,
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
    WHERE u.id = :user_id
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM person AS n
CROSS JOIN LATERAL (
    SELECT
        'session' AS kind,
        s.fingerprint_id,
        s.created_at,
        s.expires_at
    FROM app.sessions AS s
    WHERE s.user_id = n.id
    ORDER BY s.created_at
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM user_fingerprint AS n
CROSS JOIN LATERAL (
    SELECT
        'fingerprint' AS kind,
        f.id,
        n.is_shared,
        f.sig_hash,
        f.base_quota::text,
        f.quota_anchor,
        f.next_quota_reset,
        f.quota_period_start,
        f.created_at
    FROM app.fingerprints AS f
    WHERE f.id = n.fingerprint_id
    ORDER BY f.id
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM (
    SELECT
        'payload' AS kind,
        p.subject_id,
        p.message_id,
        p.finished_at,
        p.request,
        p.response
    FROM (
        SELECT array_agg(n.id) AS ids
        FROM payer AS n
    ) AS n
    CROSS JOIN LATERAL app.list_detached_payloads(n.ids) AS p
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM payer AS n
CROSS JOIN LATERAL (
    SELECT
        'payload' AS kind,
        p.subject_id,
        p.message_id,
        p.finished_at,
        p.request,
        p.response
    FROM app.message_payloads AS p
    WHERE p.subject_id = n.id
    ORDER BY p.message_id
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM payer AS n
CROSS JOIN LATERAL (
    SELECT
        'message' AS kind,
        n.is_anonymous,
        m.subject_id,
        m.id,
        m.fingerprint_id,
        m.finished_at,
        m.recorded_at,
        m.provider,
        m.model,
        m.input_tokens,
        m.cache_creation_input_tokens,
        m.cache_read_input_tokens,
        m.output_tokens,
        m.total_tokens,
        m.cost::text,
        m.credits::text,
        m.latency_ms,
        m.client_id,
        m.client_request_id
    FROM app.messages AS m
    WHERE m.subject_id = n.id
    ORDER BY m.finished_at
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM payer AS n
CROSS JOIN LATERAL (
    SELECT
        'usage' AS kind,
        n.is_anonymous,
        d.subject_id,
        d.day,
        d.messages,
        d.input_tokens,
        d.cache_creation_input_tokens,
        d.cache_read_input_tokens,
        d.output_tokens,
        d.total_tokens,
        d.cost::text,
        d.credits::text
    FROM app.usage_daily AS d
    WHERE d.subject_id = n.id
    ORDER BY d.day
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM person AS n
CROSS JOIN LATERAL (
    SELECT
        'referral' AS kind,
        f.referrer_id = n.id AS is_referrer,
        f.status,
        f.credits::text,
        f.created_at,
        f.completed_at
    FROM app.referrals AS f
    WHERE n.id IN (f.referrer_id, f.referred_id)
    ORDER BY f.created_at
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM customer AS n
CROSS JOIN LATERAL (
    SELECT
        'stripe_customer' AS kind,
        c.id,
        COALESCE(c.user_id = :user_id, FALSE) AS is_linked,
        c.is_deleted,
        c.created_at,
        c.as_of,
        c.is_provisional,
        COALESCE(c.claimed_user_id = :user_id, FALSE) AS is_claimed,
        c.claim_source
    FROM app.stripe_customers AS c
    WHERE c.id = n.id
    ORDER BY c.id
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM customer AS n
CROSS JOIN LATERAL (
    SELECT
        'stripe_subscription' AS kind,
        s.id,
        s.customer_id,
        s.status,
        s.billing_cycle_anchor,
        s.cancel_at_period_end,
        s.canceled_at,
        s.created_at,
        s.as_of,
        s.is_provisional,
        s.cancel_at,
        s.trial_end,
        s.pause_behavior,
        s.pause_resumes_at,
        COALESCE(s.claimed_user_id = :user_id, FALSE) AS is_claimed
    FROM app.stripe_subscriptions AS s
    WHERE s.customer_id = n.id
    ORDER BY s.created_at
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM customer AS n
CROSS JOIN LATERAL (
    SELECT
        'stripe_subscription_item' AS kind,
        i.subscription_id,
        i.id,
        i.price_id,
        i.unit_amount::text,
        i.quantity,
        i.current_period_start,
        i.current_period_end
    FROM app.stripe_subscriptions AS s
    INNER JOIN app.stripe_subscription_items AS i ON s.id = i.subscription_id
    WHERE s.customer_id = n.id
    ORDER BY i.subscription_id, i.id
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM (
    SELECT
        'entitlement' AS kind,
        e.stripe_customer_id,
        e.stripe_subscription_id,
        e.stripe_price_id,
        e.subscription_status,
        e.base_quota::text,
        e.ends_at,
        e.trial_end,
        e.pause_behavior,
        e.pause_resumes_at,
        e.reason
    FROM app.stripe_entitlements AS e
    WHERE e.id = :user_id
) AS r
UNION ALL
SELECT
    r.kind,
    row_to_json(r)::text AS json_text
FROM person AS n
CROSS JOIN LATERAL (
    SELECT
        'stripe_event' AS kind,
        e.id,
        e.type,
        e.api_version,
        e.event_created_at,
        e.payload,
        e.status,
        e.attempts,
        e.last_error,
        e.received_at,
        e.processed_at
    FROM app.list_user_events(n.id) AS e
) AS r;
