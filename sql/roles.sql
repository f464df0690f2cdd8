-- Least privilege, for who wants it: run this as the owner of the schema, again after
-- every migration, then GRANT one of the three roles to each login.
--
--     pyapp_app       what a request needs: accounts, sessions, messages, referrals
--     pyapp_sync      webhooks and reconciliation: the only writer of Stripe's columns
--     pyapp_readonly  reports; neither token hashes nor what anybody said
--
-- A process that does two jobs is given two roles. Whoever migrates owns the schema and
-- needs none of them.

DO $$
DECLARE
    role text;
BEGIN
    -- Roles belong to the whole server, where another database may have made them.
    FOREACH role IN ARRAY ARRAY['pyapp_app', 'pyapp_sync', 'pyapp_readonly'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role);
        EXECUTE format('CREATE ROLE %I NOLOGIN', role);
    END LOOP;
END;
$$;

-- From nothing each time, so that what a later version no longer grants is gone.
REVOKE ALL ON ALL TABLES IN SCHEMA app FROM pyapp_app, pyapp_sync, pyapp_readonly;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA app FROM pyapp_app, pyapp_sync, pyapp_readonly;
REVOKE ALL ON SCHEMA app FROM pyapp_app, pyapp_sync, pyapp_readonly;

-- They run as their owner: hung as a trigger on a table of the caller's own, they would
-- write whatever the caller wants. A trigger that is there needs no such right to fire,
-- and all other functions run as their caller.
REVOKE EXECUTE ON FUNCTION
app.add_usage(), app.grant_referral_credits(), app.refuse_user_id()
FROM public;

GRANT USAGE ON SCHEMA app TO pyapp_app, pyapp_sync, pyapp_readonly;

-- ---------------------------------------------------------------------------
-- pyapp_app
-- ---------------------------------------------------------------------------

GRANT SELECT ON app.plans, app.users, app.fingerprints, app.usage_daily TO pyapp_app;

GRANT
INSERT (id, email, name, email_verified_at, image_url),
UPDATE (email, name, email_verified_at, image_url, anonymized_at)
ON app.users TO pyapp_app;

GRANT INSERT (id, sig_hash), UPDATE (sig_hash) ON app.fingerprints TO pyapp_app;

-- The hash is read here, for a session is found and revoked by it. That gives nothing
-- away: no token follows from its hash, and who may insert sessions can forge one.
GRANT
SELECT,
INSERT (token_hash, user_id, fingerprint_id, created_at, expires_at),
UPDATE (expires_at),
DELETE
ON app.sessions TO pyapp_app;

-- Neither UPDATE nor DELETE nor TRUNCATE: a bill is added to, never changed.
GRANT
SELECT,
INSERT (
    subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, latency_ms,
    model, client_id, client_request_id, cost, credits
)
ON app.messages TO pyapp_app;

-- What was said can be forgotten; anonymize_user does.
GRANT
SELECT,
INSERT (subject_id, message_id, finished_at, request, response),
DELETE
ON app.message_payloads TO pyapp_app;

GRANT
SELECT,
INSERT (referrer_id, referred_id, status, credits, completed_at),
UPDATE (status, credits, completed_at)
ON app.referrals TO pyapp_app;

-- ---------------------------------------------------------------------------
-- pyapp_sync
-- ---------------------------------------------------------------------------

GRANT SELECT ON
app.plans, app.users, app.stripe_events, app.stripe_customers,
app.stripe_subscriptions, app.stripe_sync_runs
TO pyapp_sync;

GRANT UPDATE (
    base_quota, quota_anchor, next_quota_reset, stripe_customer_id,
    stripe_subscription_id, stripe_price_id, subscription_status, created_at
)
ON app.users TO pyapp_sync;

-- No DELETE: what Stripe deletes becomes a state here, never a missing row.
GRANT INSERT, UPDATE ON
app.stripe_events, app.stripe_customers, app.stripe_subscriptions
TO pyapp_sync;

GRANT
INSERT (kind, is_dry_run, cursor, counts, outcome, finished_at, last_error),
UPDATE (cursor, counts, outcome, finished_at, last_error)
ON app.stripe_sync_runs TO pyapp_sync;

-- ---------------------------------------------------------------------------
-- pyapp_readonly
-- ---------------------------------------------------------------------------

GRANT SELECT ON
app.plans, app.users, app.fingerprints, app.messages, app.usage_daily, app.referrals,
app.stripe_customers, app.stripe_subscriptions, app.stripe_sync_runs
TO pyapp_readonly;

GRANT SELECT (user_id, fingerprint_id, created_at, expires_at)
ON app.sessions TO pyapp_readonly;

-- The default partition by itself, too: pyapp stats tells whether anything is in it.
GRANT SELECT (subject_id, message_id, finished_at)
ON app.message_payloads, app.message_payloads_default TO pyapp_readonly;

GRANT SELECT (
    id, type, api_version, event_created_at, status, attempts, last_error, received_at,
    processed_at
)
ON app.stripe_events TO pyapp_readonly;
