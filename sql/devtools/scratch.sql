-- name: format_create_scratch :one
-- An empty database is a copy of template0, which has no objects of the site.
SELECT
    format('CREATE DATABASE %I TEMPLATE %I', :name::text, :template::text)
        AS statement;

-- name: format_drop_scratch :one
-- FORCE ends sessions of the same run that are still connected.
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', :name::text) AS statement;

-- name: list_old_scratches :many
-- Databases of killed runs; the name has the start of the run.
SELECT format('DROP DATABASE IF EXISTS %I', d.datname) AS statement
FROM pg_database AS d
WHERE d.datname ~ '^pyapp_scratch_[0-9]{1,12}_[0-9a-f]{8}$'
    AND split_part(d.datname, '_', 3)::numeric
    < extract(EPOCH FROM now() - interval '1 hour')
    AND pg_has_role(d.datdba, 'USAGE')
    AND NOT EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.datname = d.datname
    )
ORDER BY d.datname;

-- name: get_scratch_rights :one
-- Whether the role can create databases on this server.
SELECT
    r.rolname AS role,
    r.rolsuper OR r.rolcreatedb AS can_create,
    pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only')::boolean AS is_read_only
FROM pg_roles AS r
WHERE r.rolname = current_user;

-- name: format_create_role :one
-- The role of a temporary server: it may create what a comparison needs.
SELECT
    format(
        'CREATE ROLE %I LOGIN CREATEDB CREATEROLE PASSWORD %L',
        :name::text, :password::text
    ) AS statement;

-- name: list_plan_rows :many
-- The only table whose rows are part of the schema, without the operator's prices.
SELECT
    p.id AS name,
    format(
        'INSERT INTO app.plans (id, monthly_credits) VALUES (%L, %s);',
        p.id, trim_scale(p.monthly_credits)
    ) AS statement
FROM app.plans AS p
ORDER BY p.id;

-- name: list_revoked_functions :many
-- Functions that PUBLIC may not execute, which is the right of a new one.
SELECT
    r.name,
    format('REVOKE EXECUTE ON FUNCTION %s FROM public;', r.name) AS statement
FROM (
    SELECT format('app.%I(%s)', p.proname, oidvectortypes(p.proargtypes)) AS name
    FROM pg_proc AS p
    WHERE p.pronamespace = to_regnamespace('app')
        AND p.prokind <> 'p'
        AND p.proacl IS NOT NULL
        AND NOT EXISTS (
            SELECT
            FROM aclexplode(p.proacl) AS a
            WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'
        )
) AS r
ORDER BY r.name;

-- name: list_other_owners :many
-- Objects of schema app that do not belong to its owner, who could not change them.
SELECT
    format('OWNER %s', o.name) AS name,
    format('ALTER %s OWNER TO %I;', o.name, r.rolname) AS statement
FROM (
    SELECT
        format(
            '%s app.%I',
            CASE c.relkind
                WHEN 'v' THEN 'VIEW'
                WHEN 'm' THEN 'MATERIALIZED VIEW'
                WHEN 'S' THEN 'SEQUENCE'
                ELSE 'TABLE'
            END,
            c.relname
        ) AS name,
        c.relowner AS owner,
        c.relnamespace AS schema
    FROM pg_class AS c
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL
    SELECT
        format(
            '%s app.%I(%s)',
            CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
            p.proname,
            oidvectortypes(p.proargtypes)
        ) AS name,
        p.proowner AS owner,
        p.pronamespace AS schema
    FROM pg_proc AS p
) AS o
INNER JOIN pg_namespace AS n ON o.schema = n.oid
INNER JOIN pg_roles AS r ON o.owner = r.oid
WHERE n.nspname = 'app' AND n.nspowner <> o.owner
ORDER BY o.name;

-- name: list_disabled_constraints :many
-- Foreign keys without effect, as an interrupted pg_restore --disable-triggers leaves
-- them. A dump has none of these triggers.
SELECT DISTINCT
    format('DISABLED CONSTRAINT %s %I', t.tgrelid::regclass, k.conname) AS name,
    format('ALTER TABLE %s DISABLE TRIGGER ALL;', t.tgrelid::regclass) AS statement
FROM pg_trigger AS t
INNER JOIN pg_constraint AS k ON t.tgconstraint = k.oid
WHERE k.connamespace = to_regnamespace('app')
    AND t.tgisinternal
    AND t.tgenabled IN ('D', 'R')
ORDER BY name;
