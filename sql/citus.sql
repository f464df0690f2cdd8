-- Distributes the schema over several machines with Citus, by payer. Run it on the
-- coordinator, in an empty database that has schema.sql and sql/functions, before
-- roles.sql. docs/scaling.md describes the benefits and limits. Every name is
-- schema-qualified, because a role that may create objects in public could otherwise
-- have its own functions called.

CREATE EXTENSION citus;

-- Citus allows triggers on distributed tables only with this setting: they must not
-- write outside the row's shard group. messages_add_usage writes only the payer's rows.
SELECT pg_catalog.set_config('citus.enable_unsafe_triggers', 'on', FALSE);

-- ---------------------------------------------------------------------------
-- Reference tables
-- ---------------------------------------------------------------------------

-- A trigger of a reference table runs on each machine, and the mirror of Stripe is on
-- the coordinator. A claim on a new user takes effect at the next event of its customer
-- or the next reconciliation.
DROP TRIGGER users_take_stripe_claims ON app.users;

-- Distributed rows refer to these tables, and a foreign key needs both sides on one
-- machine. Sessions, referrals, plan_prices and stripe_* refer to them, and stay on the
-- coordinator, as does model_prices, which only the coordinator reads.
SELECT pg_catalog.create_reference_table('app.plans');
SELECT pg_catalog.create_reference_table('app.users');
SELECT pg_catalog.create_reference_table('app.fingerprints');

-- ---------------------------------------------------------------------------
-- Tables distributed by payer
-- ---------------------------------------------------------------------------

-- A unique index must include the payer. So with Citus, the same id and fingerprint are
-- one message per payer: a retry after a sign-in is billed again, to the user.
DROP INDEX app.messages_fingerprint_id_id_idx;
CREATE INDEX messages_fingerprint_id_idx ON app.messages (fingerprint_id);

SELECT pg_catalog.create_distributed_table('app.messages', 'subject_id');

SELECT pg_catalog.create_distributed_table(
    'app.message_payloads', 'subject_id', colocate_with => 'app.messages'
);

SELECT pg_catalog.create_distributed_table(
    'app.usage_slots', 'subject_id', colocate_with => 'app.messages'
);

-- ---------------------------------------------------------------------------
-- The rollup
-- ---------------------------------------------------------------------------

-- Citus cannot plan INSERT ... SELECT from a transition table, so loop over the days,
-- in key order, so that concurrent writers of several rows do not deadlock. Each row is
-- a whole day, because the anchors of payers are in other tables.
CREATE OR REPLACE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    usage record;
BEGIN
    FOR usage IN
        SELECT
            i.subject_id,
            date_trunc('day', i.finished_at, '+00') AS starts_at,
            count(*) AS messages,
            sum(i.input_tokens) AS input_tokens,
            sum(i.cache_creation_input_tokens) AS cache_creation_input_tokens,
            sum(i.cache_read_input_tokens) AS cache_read_input_tokens,
            sum(i.output_tokens) AS output_tokens,
            sum(i.cost) AS cost,
            sum(i.credits) AS credits
        FROM inserted AS i
        GROUP BY 1, 2
        ORDER BY 1, 2
    LOOP
        INSERT INTO app.usage_slots AS s (
            subject_id, starts_at, ends_at, slot, messages, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
            credits
        )
        VALUES (
            usage.subject_id, usage.starts_at, usage.starts_at + interval '24 hours', 0,
            usage.messages, usage.input_tokens, usage.cache_creation_input_tokens,
            usage.cache_read_input_tokens, usage.output_tokens, usage.cost,
            usage.credits
        )
        ON CONFLICT (subject_id, starts_at, ends_at, slot) DO UPDATE SET
            messages = s.messages + excluded.messages,
            input_tokens = s.input_tokens + excluded.input_tokens,
            cache_creation_input_tokens
                = s.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
            cache_read_input_tokens
                = s.cache_read_input_tokens + excluded.cache_read_input_tokens,
            output_tokens = s.output_tokens + excluded.output_tokens,
            cost = s.cost + excluded.cost,
            credits = s.credits + excluded.credits;
    END LOOP;
    RETURN NULL;
END;
$$;

-- This trigger depends on the trigger depth, which restarts in the session of a shard.
-- The privileges of roles.sql protect the table instead.
DROP TRIGGER usage_slots_kept_by_trigger ON app.usage_slots;
