-- The days summed before the trigger of 0023. Writers wait for one batch at most. In
-- the order of the table, so that it is read once and the rows of a day stay together.

-- transactional: false

DO $$
DECLARE
    filenode oid := pg_relation_filenode('app.usage_daily');
    pages bigint := pg_relation_size('app.usage_daily')
    / current_setting('block_size')::bigint;
BEGIN
    FOR page IN 0..pages BY 20 LOOP
        -- Read by usage_slots_kept_by_trigger.
        PERFORM set_config('app.is_repairing', 'on', TRUE);

        -- A row that has moved to another page was copied by the trigger, and a row that
        -- the trigger has copied is newer than the one read here. The lock keeps a repair
        -- from deleting a row until its copy is there.
        WITH batch AS MATERIALIZED (
            SELECT d.*
            FROM app.usage_daily AS d
            WHERE d.ctid >= format('(%s,0)', page)::tid
                AND d.ctid < format('(%s,0)', page + 20)::tid
            FOR KEY SHARE
        )

        INSERT INTO app.usage_slots (
            subject_id, starts_at, ends_at, slot, messages, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
            credits
        )
        SELECT
            b.subject_id,
            p.starts_at,
            p.ends_at,
            0,
            b.messages,
            b.input_tokens,
            b.cache_creation_input_tokens,
            b.cache_read_input_tokens,
            b.output_tokens,
            b.cost,
            b.credits
        FROM batch AS b
        CROSS JOIN LATERAL app.get_usage_span(
            NULL, b.day::timestamp AT TIME ZONE interval '0'
        ) AS p
        ORDER BY b.subject_id, b.day
        ON CONFLICT ON CONSTRAINT usage_slots_pkey DO NOTHING;
        COMMIT;
    END LOOP;
    IF pg_relation_filenode('app.usage_daily') <> filenode THEN
        RAISE EXCEPTION 'app.usage_daily was rewritten while it was read: repeat this';
    END IF;
    ANALYZE app.usage_slots;
END;
$$;
