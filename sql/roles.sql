-- Optional least-privilege roles. Run this file as the owner of the schema after every
-- migration, then GRANT one of the roles to each login.
--
--     pyapp_app       serves requests: users, sessions, messages, referrals; reads
--                     entitlements
--     pyapp_sync      webhooks and reconciliation: the only writer of Stripe's columns
--     pyapp_readonly  reports, without token hashes and payloads
--
-- A process with two jobs needs two roles. The role that migrates owns the schema and
-- needs none of them.
--
-- What privileges do not prevent
--
-- - Every role can take any advisory lock: it can keep `pyapp stripe reconcile`,
--   `pyapp stripe replay` and `pyapp db migrate` from starting, and make deliveries for
--   a customer wait. The error of each command names the session that holds the lock.
--   A superuser can prevent this for one database and all programs that use it:
--
--     REVOKE EXECUTE ON FUNCTION
--     pg_advisory_lock(bigint), pg_advisory_lock_shared(bigint),
--     pg_advisory_xact_lock(bigint), pg_advisory_xact_lock_shared(bigint),
--     pg_try_advisory_lock(bigint), pg_try_advisory_lock_shared(bigint),
--     pg_try_advisory_xact_lock(bigint), pg_try_advisory_xact_lock_shared(bigint)
--     FROM public;
--     GRANT EXECUTE ON FUNCTION
--     pg_advisory_xact_lock(bigint), pg_try_advisory_lock(bigint),
--     pg_try_advisory_xact_lock(bigint)
--     TO pyapp_sync;
--
--   The role that migrates needs the last grant too, unless it is a superuser.
-- - Every role can make writers wait. PostgreSQL takes the lock of CREATE RULE, CREATE
--   TRIGGER and CREATE TABLE ... PARTITION OF before it checks the table's owner. The
--   statement fails once it has the lock; until then it waits for the transactions that
--   use the table, and later statements on the table wait for it.
-- - pyapp_app and pyapp_sync can lock the rows that they may update until the end of
--   their transaction: users, sessions, referrals, the Stripe mirror. Every role can
--   keep a transaction open, which holds back VACUUM.
-- - pyapp_app can insert messages of any payer with any cost and credits, sessions of
--   any user, and referrals of up to 1,000,000 credits between any users. It can change
--   the e-mail address of any user, erase any user, end any session, and cancel any
--   pending referral. It can read all that is held of any user, payloads and Stripe
--   events included.
-- - pyapp_sync can give any user any quota and any subscription status.
-- - Every role can exhaust connections, memory and disk, for example by temporary
--   tables. ALTER ROLE ... CONNECTION LIMIT and temp_file_limit limit that. Timeouts do
--   not, because every session can change its own.

DO $$
DECLARE
    role text;
BEGIN
    -- Roles are shared by all databases of the server: another one may have them.
    FOREACH role IN ARRAY ARRAY['pyapp_app', 'pyapp_sync', 'pyapp_readonly'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role);
        EXECUTE format('CREATE ROLE %I NOLOGIN', role);
    END LOOP;
END;
$$;

-- Start from nothing, so that privileges of earlier versions are removed.
REVOKE ALL ON ALL TABLES IN SCHEMA app FROM pyapp_app, pyapp_sync, pyapp_readonly;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA app FROM pyapp_app, pyapp_sync, pyapp_readonly;
REVOKE ALL ON SCHEMA app FROM pyapp_app, pyapp_sync, pyapp_readonly;

-- SECURITY DEFINER functions. As a trigger on a table of the caller's own, they would
-- write rows of the caller's choice. Existing triggers fire without this privilege.
REVOKE EXECUTE ON FUNCTION
app.add_usage(), app.grant_referral_credits(), app.refuse_user_id(),
app.take_stripe_claims(), app.end_unverified_sessions(),
app.replace_stripe_items(text[], jsonb[]), app.delete_session(bytea),
app.delete_user_sessions(uuid), app.delete_expired_sessions(bigint),
app.cancel_referral(uuid), app.anonymize_user(uuid),
app.list_detached_payloads(uuid[]), app.list_user_events(uuid), app.cut_usage(uuid)
FROM public;

GRANT USAGE ON SCHEMA app TO pyapp_app, pyapp_sync, pyapp_readonly;

-- All other functions run with the privileges of their caller. Only the owner repairs,
-- cuts and folds sums. PUBLIC may execute the rest, unless the database's default
-- privileges say otherwise.
DO $$
DECLARE
    called regprocedure;
    is_for_owner boolean;
BEGIN
    FOR called, is_for_owner IN
        SELECT
            p.oid,
            p.proname IN (
                'repair_usage_day', 'repair_referral_totals', 'cut_usage_day',
                'rebuild_usage_day', 'replace_usage_rows', 'fold_usage'
            )
        FROM pg_catalog.pg_proc AS p
        INNER JOIN pg_catalog.pg_namespace AS n ON p.pronamespace = n.oid
        WHERE n.nspname = 'app' AND NOT p.prosecdef
    LOOP
        IF is_for_owner THEN
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM public', called);
        ELSE
            EXECUTE format(
                'GRANT EXECUTE ON FUNCTION %s TO pyapp_app, pyapp_sync, pyapp_readonly',
                called
            );
        END IF;
    END LOOP;
END;
$$;

-- For pyapp db status and pyapp doctor: which migrations are applied. A database that
-- psql built from the SQL files has no such tables.
DO $$
DECLARE
    marks text;
BEGIN
    FOR marks IN
        SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_namespace AS n ON c.relnamespace = n.oid
        WHERE n.nspname = 'public'
            AND c.relname IN ('_yoyo_migration', 'pyapp_migration_checksums')
            AND pg_has_role(c.relowner, 'USAGE')
    LOOP
        EXECUTE format(
            'GRANT SELECT ON %s TO pyapp_app, pyapp_sync, pyapp_readonly', marks
        );
    END LOOP;
END;
$$;

-- ---------------------------------------------------------------------------
-- pyapp_app
-- ---------------------------------------------------------------------------

GRANT SELECT ON
app.plans, app.plan_prices, app.model_prices, app.users, app.fingerprints,
app.usage_slots, app.usage_daily
TO pyapp_app;

-- For the end date and the trial on a user's account page. The view runs with the
-- privileges of its caller.
GRANT SELECT ON
app.stripe_entitlements, app.stripe_customers, app.stripe_subscriptions,
app.stripe_subscription_items
TO pyapp_app;

GRANT
INSERT (email, name),
UPDATE (email, name, email_verified_at, image_url)
ON app.users TO pyapp_app;

GRANT INSERT (id, sig_hash), UPDATE (sig_hash) ON app.fingerprints TO pyapp_app;

-- Sessions are found by the hash of their token. Reading hashes is harmless: no token
-- can be derived from its hash, and a role that may insert sessions can forge them.
GRANT
SELECT,
INSERT (token_hash, user_id, fingerprint_id, created_at, expires_at),
UPDATE (expires_at)
ON app.sessions TO pyapp_app;

-- No UPDATE, DELETE or TRUNCATE: messages are append-only.
GRANT
SELECT,
INSERT (
    subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, latency_ms,
    model, client_id, client_request_id, cost, credits, provider
)
ON app.messages TO pyapp_app;

-- No DELETE, which would also allow LOCK TABLE in ACCESS EXCLUSIVE mode.
GRANT
SELECT,
INSERT (subject_id, message_id, finished_at, request, response)
ON app.message_payloads TO pyapp_app;

-- SECURITY DEFINER: deletes payloads, detached ones included, and pending referrals,
-- and is the only way to set anonymized_at.
GRANT EXECUTE ON FUNCTION app.anonymize_user(uuid) TO pyapp_app;

-- SECURITY DEFINER: for export_user, which returns detached payloads and one user's
-- Stripe events. The role may not read these tables.
GRANT EXECUTE ON FUNCTION
app.list_detached_payloads(uuid[]), app.list_user_events(uuid)
TO pyapp_app;

GRANT
SELECT,
INSERT (referrer_id, referred_id, status, credits),
UPDATE (status)
ON app.referrals TO pyapp_app;

-- Instead of DELETE, which would also allow LOCK TABLE in ACCESS EXCLUSIVE mode.
GRANT EXECUTE ON FUNCTION
app.delete_session(bytea), app.delete_user_sessions(uuid),
app.delete_expired_sessions(bigint), app.cancel_referral(uuid)
TO pyapp_app;

-- ---------------------------------------------------------------------------
-- pyapp_sync
-- ---------------------------------------------------------------------------

GRANT SELECT ON
app.plans, app.plan_prices, app.users, app.stripe_events, app.stripe_customers,
app.stripe_subscriptions, app.stripe_subscription_items, app.stripe_entitlements,
app.stripe_sync_runs
TO pyapp_sync;

GRANT UPDATE (
    base_quota, quota_anchor, next_quota_reset, stripe_customer_id,
    stripe_subscription_id, stripe_price_id, subscription_status, created_at
)
ON app.users TO pyapp_sync;

-- No DELETE here: deleted and canceled objects keep their rows. UPDATE is granted by
-- column throughout, because on a table it allows LOCK TABLE in every mode.
GRANT
INSERT (
    id, type, api_version, event_created_at, payload, status, attempts, last_error,
    processed_at
),
UPDATE (payload, status, attempts, last_error, processed_at)
ON app.stripe_events TO pyapp_sync;

GRANT
INSERT (
    id, user_id, is_deleted, created_at, as_of, is_provisional, claimed_user_id,
    claim_source
),
UPDATE (
    user_id, is_deleted, created_at, as_of, is_provisional, claimed_user_id,
    claim_source
)
ON app.stripe_customers TO pyapp_sync;

GRANT
INSERT (
    id, customer_id, status, billing_cycle_anchor, cancel_at_period_end, canceled_at,
    created_at, as_of, is_provisional, cancel_at, trial_end, pause_behavior,
    pause_resumes_at, claimed_user_id
),
UPDATE (
    customer_id, status, billing_cycle_anchor, cancel_at_period_end, canceled_at,
    created_at, as_of, is_provisional, cancel_at, trial_end, pause_behavior,
    pause_resumes_at, claimed_user_id
)
ON app.stripe_subscriptions TO pyapp_sync;

-- SECURITY DEFINER: the only writer of stripe_subscription_items. Instead of DELETE,
-- which would also allow LOCK TABLE in ACCESS EXCLUSIVE mode.
GRANT EXECUTE ON FUNCTION app.replace_stripe_items(text[], jsonb[]) TO pyapp_sync;

-- SECURITY DEFINER: cuts the sums of a day in which a period that the sync has moved
-- begins. The role may not read them.
GRANT EXECUTE ON FUNCTION app.cut_usage(uuid) TO pyapp_sync;

GRANT
INSERT (kind, is_dry_run),
UPDATE (cursor, counts, outcome, finished_at, last_error)
ON app.stripe_sync_runs TO pyapp_sync;

-- ---------------------------------------------------------------------------
-- pyapp_readonly
-- ---------------------------------------------------------------------------

GRANT SELECT ON
app.plans, app.plan_prices, app.model_prices, app.users, app.fingerprints,
app.messages, app.usage_slots, app.usage_daily, app.referrals, app.stripe_customers,
app.stripe_subscriptions, app.stripe_subscription_items, app.stripe_entitlements,
app.stripe_sync_runs, app.usage_drift, app.uncut_usage, app.unfolded_usage,
app.referral_drift
TO pyapp_readonly;

GRANT SELECT (user_id, fingerprint_id, created_at, expires_at)
ON app.sessions TO pyapp_readonly;

-- The default partition too: pyapp stats reports whether it has rows.
GRANT SELECT (subject_id, message_id, finished_at)
ON app.message_payloads, app.message_payloads_default TO pyapp_readonly;

GRANT SELECT (
    id, type, api_version, event_created_at, status, attempts, last_error, received_at,
    processed_at
)
ON app.stripe_events TO pyapp_readonly;
