-- name: list_privileges :many
-- The privileges in schema app, and on the tables of migrations, of PUBLIC and of the
-- roles of sql/roles.sql; and what these roles may do beyond that. Tables that exist
-- only while payloads move are left out.
WITH grantees AS (
    SELECT
        r.oid,
        r.rolname AS name
    FROM pg_roles AS r
    WHERE r.rolname IN ('pyapp_app', 'pyapp_sync', 'pyapp_readonly')
    UNION ALL
    SELECT
        0 AS oid,
        'PUBLIC' AS name
),

relations AS (
    SELECT
        c.oid,
        c.relowner AS owner,
        c.relacl AS acl,
        format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    WHERE (
        n.nspname = 'app'
        AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND c.relname NOT IN ('waiting_payloads', 'retired_payloads')
    )
    OR (
        n.nspname = 'public'
        AND c.relname IN (
            '_yoyo_migration',
            '_yoyo_log',
            '_yoyo_version',
            'yoyo_lock',
            'pyapp_migration_checksums'
        )
    )
),

objects AS (
    SELECT
        0 AS id,
        'SCHEMA app' AS kind_and_name,
        '' AS columns,
        n.nspowner AS owner,
        n.nspacl AS acl
    FROM pg_namespace AS n
    WHERE n.nspname = 'app'
    UNION ALL
    SELECT
        r.oid AS id,
        r.name AS kind_and_name,
        '' AS columns,
        r.owner,
        r.acl
    FROM relations AS r
    UNION ALL
    SELECT
        r.oid AS id,
        r.name AS kind_and_name,
        format(' (%I)', a.attname) AS columns,
        r.owner,
        a.attacl AS acl
    FROM relations AS r
    INNER JOIN pg_attribute AS a ON r.oid = a.attrelid
    WHERE NOT a.attisdropped
    UNION ALL
    SELECT
        p.oid AS id,
        format(
            'FUNCTION app.%I(%s)', p.proname, oidvectortypes(p.proargtypes)
        ) AS kind_and_name,
        '' AS columns,
        p.proowner AS owner,
        COALESCE(p.proacl, acldefault('f', p.proowner)) AS acl
    FROM pg_proc AS p
    INNER JOIN pg_namespace AS n ON p.pronamespace = n.oid
    WHERE n.nspname = 'app' AND p.prokind <> 'p'
),

found AS (
    SELECT
        format('PRIVILEGES %s %s', o.kind_and_name, g.name) AS name,
        format(
            'GRANT %s%s ON %s TO %s%s;',
            a.privilege_type,
            o.columns,
            o.kind_and_name,
            g.name,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        ) AS statement
    FROM objects AS o
    CROSS JOIN aclexplode(o.acl) AS a
    INNER JOIN grantees AS g ON a.grantee = g.oid
    WHERE a.grantee <> o.owner AND (g.oid = 0 OR o.kind_and_name !~ '^FUNCTION ')
    UNION ALL
    -- With what PUBLIC may do: a database whose default privileges take EXECUTE from
    -- PUBLIC takes it from the roles, too.
    SELECT
        format('PRIVILEGES %s %s', o.kind_and_name, g.name) AS name,
        format('GRANT EXECUTE ON %s TO %s;', o.kind_and_name, g.name) AS statement
    FROM objects AS o
    INNER JOIN grantees AS g ON g.oid <> 0
    WHERE o.kind_and_name ~ '^FUNCTION '
        AND has_function_privilege(g.oid, o.id, 'EXECUTE')
    UNION ALL
    SELECT
        format('ROLE %s', g.name) AS name,
        format('GRANT %I TO %s;', r.rolname, g.name) AS statement
    FROM pg_auth_members AS m
    INNER JOIN grantees AS g ON m.member = g.oid
    INNER JOIN pg_roles AS r ON m.roleid = r.oid
    UNION ALL
    SELECT
        format('ROLE %s', g.name) AS name,
        format('ALTER ROLE %s %s;', g.name, x.attribute) AS statement
    FROM pg_roles AS r
    INNER JOIN grantees AS g ON r.oid = g.oid
    CROSS JOIN
        LATERAL (
            VALUES
            ('SUPERUSER', r.rolsuper),
            ('CREATEROLE', r.rolcreaterole),
            ('CREATEDB', r.rolcreatedb),
            ('REPLICATION', r.rolreplication),
            ('BYPASSRLS', r.rolbypassrls)
        ) AS x (attribute, has_it)
    WHERE x.has_it
)

SELECT
    f.name,
    string_agg(f.statement, E'\n' ORDER BY f.statement) AS statement
FROM found AS f
GROUP BY f.name
ORDER BY f.name;

-- name: find_unread_owner :optional
-- The owner of schema app, if this role may not dump all of its tables.
SELECT r.rolname AS owner
FROM pg_namespace AS n
INNER JOIN pg_roles AS r ON n.nspowner = r.oid
WHERE n.nspname = 'app'
    AND (
        NOT has_schema_privilege(n.oid, 'USAGE')
        OR EXISTS (
            SELECT
            FROM pg_class AS c
            WHERE c.relnamespace = n.oid
                AND c.relkind IN ('r', 'p')
                AND NOT has_table_privilege(c.oid, 'SELECT')
        )
    );

-- name: find_schema_owner :optional
-- The role that migrates.
SELECT r.rolname AS owner
FROM pg_namespace AS n
INNER JOIN pg_roles AS r ON n.nspowner = r.oid
WHERE n.nspname = 'app';

-- name: find_other_owner :optional
-- The owner of schema app, if this role lacks its privileges.
SELECT r.rolname AS owner
FROM pg_namespace AS n
INNER JOIN pg_roles AS r ON n.nspowner = r.oid
WHERE n.nspname = 'app' AND NOT pg_has_role(n.nspowner, 'USAGE');

-- name: list_missing_roles :many
-- The statements that create the roles of sql/roles.sql, if this role may not.
SELECT format('CREATE ROLE %I NOLOGIN', w.name) AS statement
FROM unnest(:names::text[]) WITH ORDINALITY AS w (name, position)
WHERE
    NOT EXISTS (
        SELECT
        FROM pg_roles AS r
        WHERE r.rolname = w.name
    )
    AND NOT EXISTS (
        SELECT
        FROM pg_roles AS r
        WHERE r.rolname = current_user AND (r.rolsuper OR r.rolcreaterole)
    )
ORDER BY w.position;

-- name: has_role :one
-- Whether the role has the privileges of the role :name, which may not exist.
SELECT COALESCE(bool_or(pg_has_role(r.oid, 'USAGE')), FALSE) AS has_role
FROM pg_roles AS r
WHERE r.rolname = :name::text;

-- name: list_mark_grants :many
-- What the role lacks to read which migrations are applied.
WITH marks AS (
    SELECT
        c.oid,
        c.relnamespace,
        format('public.%I', c.relname) AS name
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    WHERE n.nspname = 'public'
        AND c.relname IN ('_yoyo_migration', 'pyapp_migration_checksums')
)

SELECT DISTINCT format('GRANT USAGE ON SCHEMA public TO %I', current_user) AS statement
FROM marks AS m
WHERE NOT has_schema_privilege(m.relnamespace, 'USAGE')
UNION ALL
SELECT
    format(
        'GRANT SELECT ON %s TO %I',
        string_agg(m.name, ', ' ORDER BY m.name),
        current_user
    ) AS statement
FROM marks AS m
WHERE NOT has_table_privilege(m.oid, 'SELECT')
HAVING count(*) > 0
ORDER BY statement DESC;
