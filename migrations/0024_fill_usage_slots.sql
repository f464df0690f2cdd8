-- transactional: false

-- The days summed before the trigger of 0023, in the order of the table, so that it is
-- read once and the rows of a day stay together. A batch waits for no lock, so writers
-- wait for one batch at most, and cannot deadlock with it.

DO $$
DECLARE
    filenode oid := pg_relation_filenode('app.usage_daily');
    pages bigint := pg_relation_size('app.usage_daily')
    / current_setting('block_size')::bigint;
    batch_start tid;
    batch_end tid;
BEGIN
    FOR page IN 0..pages BY 20 LOOP
        batch_start := format('(%s,0)', page);
        batch_end := format('(%s,0)', page + 20);
        LOOP
            -- Read by usage_slots_kept_by_trigger.
            PERFORM set_config('app.is_repairing', 'on', TRUE);

            -- A row that another session has locked is copied by the trigger, if that
            -- session commits a change. A row that has moved was copied by it.
            WITH batch AS MATERIALIZED (
                SELECT d.*
                FROM app.usage_daily AS d
                WHERE d.ctid >= batch_start AND d.ctid < batch_end
                FOR NO KEY UPDATE SKIP LOCKED
            )

            INSERT INTO app.usage_slots (
                subject_id, starts_at, ends_at, slot, messages, input_tokens,
                cache_creation_input_tokens, cache_read_input_tokens, output_tokens,
                cost, credits
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

            -- A scalar subquery is not planned as a join that reads all of usage_slots.
            EXIT WHEN NOT EXISTS (
                SELECT
                FROM app.usage_daily AS d
                WHERE d.ctid >= batch_start
                    AND d.ctid < batch_end
                    AND (
                        SELECT s.slot
                        FROM app.usage_slots AS s
                        WHERE s.subject_id = d.subject_id
                            AND s.starts_at = d.day::timestamp AT TIME ZONE interval '0'
                    ) IS NULL
            );
            COMMIT;
            PERFORM pg_sleep(0.02);
        END LOOP;
    END LOOP;
    IF pg_relation_filenode('app.usage_daily') <> filenode THEN
        RAISE EXCEPTION 'app.usage_daily was rewritten while it was read: repeat this';
    END IF;
    ANALYZE app.usage_slots;
END;
$$;
