-- name: try_tool_lock :one
-- Held by the session, so that it is released when the session ends. If another session
-- holds it, the other columns identify that session, if the role may see it.
WITH tried AS MATERIALIZED (
    SELECT
        k.key,
        pg_try_advisory_lock(k.key) AS is_held
    FROM hashtextextended(:purpose::text, 0) AS k (key)
)

SELECT
    t.is_held,
    holder.pid AS holder_pid,
    holder.usename AS holder_role,
    holder.application_name AS holder_application,
    holder.backend_start AS holder_since
FROM tried AS t
LEFT JOIN LATERAL (
    SELECT
        l.pid,
        a.usename,
        a.application_name,
        a.backend_start
    FROM pg_locks AS l
    INNER JOIN pg_stat_activity AS a ON l.pid = a.pid
    WHERE
        NOT t.is_held
        AND a.datname = current_database()
        AND l.locktype = 'advisory'
        AND l.granted
        AND l.objsubid = 1
        AND (l.classid::bigint << 32) | l.objid::bigint = t.key
    ORDER BY l.pid
    LIMIT 1
) AS holder ON TRUE;

-- name: end_with_client :one
-- Cancels a statement whose client was killed.
SELECT set_config('client_connection_check_interval', '2s', FALSE) AS setting;

-- name: clear_timeouts :rowcount
-- Limits of a role or a database would end a long migration, comparison or maintenance.
-- From pg_settings, because 16 does not have transaction_timeout.
SELECT set_config(s.name, '0', FALSE) AS setting
FROM pg_settings AS s
WHERE s.name IN (
    'idle_in_transaction_session_timeout',
    'idle_session_timeout',
    'lock_timeout',
    'statement_timeout',
    'transaction_timeout'
);

-- name: reset_session :rowcount
-- Removes the settings of one migration before the next.
RESET ALL;

-- name: get_bookkeeping :one
-- The existing tables of yoyo and pyapp; other_clients could include a running yoyo.
-- From pg_class, because to_regclass fails for a role without USAGE on public.
SELECT
    coalesce(bool_or(c.relname = '_yoyo_migration'), FALSE) AS has_migrations,
    coalesce(bool_or(c.relname = 'yoyo_lock'), FALSE) AS has_lock,
    coalesce(bool_or(c.relname = 'pyapp_migration_checksums'), FALSE)
        AS has_checksums,
    (
        SELECT count(*)
        FROM pg_stat_activity AS a
        WHERE a.datname = current_database()
            AND a.backend_type = 'client backend'
            AND a.pid <> pg_backend_pid()
    ) AS other_clients
FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace('public');

-- name: find_schema :optional
-- Schema app and its objects, tables first. It is ours if it has the first function of
-- sql/schema.sql. From the catalog, because the role may lack USAGE on the schema.
SELECT
    count(p.oid) > 0 AS is_ours,
    count(o.name) AS objects,
    coalesce(
        (array_agg(o.name ORDER BY o.place, o.name))[:3], ARRAY[]::text[]
    ) AS names
FROM pg_namespace AS n
LEFT JOIN pg_proc AS p
    ON n.oid = p.pronamespace
    AND p.proname = 'add_months'
    AND oidvectortypes(p.proargtypes) = 'timestamp with time zone, integer'
LEFT JOIN LATERAL (
    SELECT
        i.type || ' ' || i.identity AS name,
        coalesce(c.relkind NOT IN ('r', 'p'), TRUE) AS place
    FROM pg_depend AS d
    CROSS JOIN pg_identify_object(d.classid, d.objid, 0) AS i
    LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
    WHERE d.refclassid = 'pg_namespace'::regclass
        AND d.refobjid = n.oid
        AND d.deptype = 'n'
) AS o ON TRUE
WHERE n.nspname = 'app'
GROUP BY n.oid;

-- name: list_missing_grants :many
-- The privileges that the role lacks: yoyo's tables are in public, and 0001 creates
-- schema app. If the tables exist, USAGE on public is enough.
SELECT
    CASE
        WHEN to_regnamespace('public') IS NULL
            THEN format('CREATE SCHEMA public AUTHORIZATION %I', current_user)
        ELSE
            format(
                'GRANT %s ON SCHEMA public TO %I',
                concat_ws(
                    ', ',
                    CASE WHEN NOT p.has_usage THEN 'USAGE' END,
                    CASE WHEN NOT p.can_create THEN 'CREATE' END
                ),
                current_user
            )
    END AS statement
FROM (
    SELECT
        has_schema_privilege(to_regnamespace('public'), 'USAGE') AS has_usage,
        NOT :is_missing_tables
        OR has_schema_privilege(to_regnamespace('public'), 'CREATE') AS can_create
) AS p
WHERE (p.has_usage AND p.can_create) IS NOT TRUE
UNION ALL
SELECT
    format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user)
        AS statement
WHERE :is_building
    AND to_regnamespace('app') IS NULL
    AND NOT has_database_privilege(current_database(), 'CREATE')
ORDER BY statement DESC;

-- name: create_checksums :rowcount
-- yoyo knows a migration by its name; this table has the checksum of its text.
CREATE TABLE public.pyapp_migration_checksums (
    migration_id text NOT NULL,
    applied_at   timestamp NOT NULL,
    checksum     text NOT NULL,

    CONSTRAINT pyapp_migration_checksums_pkey PRIMARY KEY (migration_id)
);

-- name: comment_checksums :rowcount
-- For readers of the table in psql.
COMMENT ON TABLE public.pyapp_migration_checksums IS
'SHA-256 of each applied migration''s text; applied_at is yoyo''s; another
time marks a row of an earlier application. Written by pyapp db migrate and pyapp db check.';

-- name: list_applied_migrations :many
-- In the order in which they were applied, with those of another yoyo project.
SELECT
    m.migration_id AS name,
    m.applied_at_utc AT TIME ZONE interval '0' AS applied_at
FROM public._yoyo_migration AS m
ORDER BY m.applied_at_utc, m.migration_id;

-- name: list_checksums :many
-- Of marked migrations. A checksum is not current if plain yoyo has rolled its
-- migration back and applied it again.
SELECT
    c.migration_id AS name,
    c.checksum,
    c.applied_at = m.applied_at_utc AS is_current
FROM public.pyapp_migration_checksums AS c
INNER JOIN public._yoyo_migration AS m ON c.migration_id = m.migration_id
ORDER BY c.migration_id;

-- name: upsert_checksum :rowcount
-- No row for a migration that is not applied.
INSERT INTO public.pyapp_migration_checksums (migration_id, applied_at, checksum)
SELECT
    m.migration_id,
    m.applied_at_utc,
    :checksum AS checksum
FROM public._yoyo_migration AS m
WHERE m.migration_id = :name
ON CONFLICT (migration_id) DO UPDATE SET
applied_at = excluded.applied_at,
checksum = excluded.checksum;

-- name: delete_checksum :rowcount
-- A migration that is rolled back may change.
DELETE FROM public.pyapp_migration_checksums AS c
WHERE c.migration_id = :name;

-- name: insert_yoyo_lock :rowcount
-- Never committed: it blocks plain yoyo, and a killed run leaves no lock to break.
INSERT INTO public.yoyo_lock (locked, ctime, pid)
VALUES (1, now() AT TIME ZONE interval '0', :pid);

-- name: delete_yoyo_lock :rowcount
-- The row of this run before it commits, or that of a killed yoyo.
DELETE FROM public.yoyo_lock;

-- name: list_yoyo_locks :many
-- The process that holds yoyo's lock, if any.
SELECT l.pid
FROM public.yoyo_lock AS l
ORDER BY l.pid;

-- name: list_dependants :many
-- Objects of other schemas that refer to an object of schema app: foreign keys, views,
-- functions, triggers and columns.
WITH owned AS (
    SELECT
        'pg_class'::regclass AS classid,
        c.oid
    FROM pg_class AS c
    WHERE c.relnamespace = to_regnamespace('app')
    UNION ALL
    SELECT
        'pg_proc'::regclass AS classid,
        p.oid
    FROM pg_proc AS p
    WHERE p.pronamespace = to_regnamespace('app')
    UNION ALL
    SELECT
        'pg_type'::regclass AS classid,
        t.oid
    FROM pg_type AS t
    WHERE t.typnamespace = to_regnamespace('app')
),

others AS (
    SELECT
        'pg_constraint'::regclass AS classid,
        c.oid,
        c.connamespace AS namespace
    FROM pg_constraint AS c
    UNION ALL
    SELECT
        'pg_rewrite'::regclass AS classid,
        r.oid,
        v.relnamespace AS namespace
    FROM pg_rewrite AS r
    INNER JOIN pg_class AS v ON r.ev_class = v.oid
    UNION ALL
    SELECT
        'pg_trigger'::regclass AS classid,
        g.oid,
        t.relnamespace AS namespace
    FROM pg_trigger AS g
    INNER JOIN pg_class AS t ON g.tgrelid = t.oid
    UNION ALL
    SELECT
        'pg_attrdef'::regclass AS classid,
        a.oid,
        t.relnamespace AS namespace
    FROM pg_attrdef AS a
    INNER JOIN pg_class AS t ON a.adrelid = t.oid
    UNION ALL
    SELECT
        'pg_class'::regclass AS classid,
        c.oid,
        c.relnamespace AS namespace
    FROM pg_class AS c
    UNION ALL
    SELECT
        'pg_proc'::regclass AS classid,
        p.oid,
        p.pronamespace AS namespace
    FROM pg_proc AS p
)

SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) AS name
FROM pg_depend AS d
INNER JOIN owned AS o ON d.refclassid = o.classid AND d.refobjid = o.oid
INNER JOIN others AS x ON d.classid = x.classid AND d.objid = x.oid
WHERE d.deptype = 'n'
    AND x.namespace <> to_regnamespace('app')
ORDER BY name;

-- name: find_index :optional
-- A killed build leaves an invalid index.
SELECT
    i.indisvalid AS is_valid,
    format('DROP INDEX CONCURRENTLY %I.%I', n.nspname, c.relname) AS drop_statement
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
INNER JOIN pg_index AS i ON c.oid = i.indexrelid
WHERE n.nspname = :schema
    AND c.relname = :name;

-- name: order_mark :rowcount
-- By the server's clock, and after all other marks: a rollback follows this order.
UPDATE public._yoyo_migration AS m
SET
    applied_at_utc = greatest(
        clock_timestamp() AT TIME ZONE interval '0',
        (
            SELECT max(o.applied_at_utc) + interval '1 microsecond'
            FROM public._yoyo_migration AS o
            WHERE o.migration_id <> :name
        )
    )
WHERE m.migration_id = :name;

-- name: rename_mark :rowcount
-- The file of an applied migration has another name now.
UPDATE public._yoyo_migration AS m
SET
    migration_id = :new_name,
    migration_hash = :new_hash
WHERE m.migration_id = :name;

-- name: rename_checksum :rowcount
-- It belongs to the mark.
UPDATE public.pyapp_migration_checksums AS c
SET migration_id = :new_name
WHERE c.migration_id = :name;

-- name: has_grants :one
-- Whether a role has privileges on views or functions. PUBLIC and the owner do not
-- count.
WITH objects AS (
    SELECT
        p.proacl AS acl,
        p.proowner AS owner
    FROM pg_proc AS p
    WHERE p.pronamespace = to_regnamespace('app')
    UNION ALL
    SELECT
        c.relacl AS acl,
        c.relowner AS owner
    FROM pg_class AS c
    WHERE c.relnamespace = to_regnamespace('app')
        AND c.relkind = 'v'
)

SELECT count(*) > 0 AS has_grants
FROM objects AS o
CROSS JOIN aclexplode(o.acl) AS a
WHERE a.grantee NOT IN (o.owner, 0);

-- name: delete_marks :rowcount
-- pyapp db adopt replaces them in the same transaction. Another yoyo project may have
-- marks in the same table.
DELETE FROM public._yoyo_migration AS m
WHERE m.migration_id = any(:names::text[]);

-- name: delete_checksums :rowcount
-- They belong to the marks.
DELETE FROM public.pyapp_migration_checksums;
