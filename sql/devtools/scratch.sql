-- name: format_create_scratch :one
-- An empty one is a copy of template0, so that nothing of the server's own gets in.
SELECT
    format('CREATE DATABASE %I TEMPLATE %I', :name::text, :template::text)
        AS statement;

-- name: format_drop_scratch :one
-- Whoever is still connected to it was part of the same run.
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', :name::text) AS statement;

-- name: list_old_scratches :many
-- A run that was killed leaves its databases; their names say when it began.
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

-- name: list_plan_rows :many
-- The one table whose rows are part of the schema. The price is the operator's to set.
SELECT
    'app.plans ' || p.id AS name,
    format(
        'INSERT INTO app.plans (id, monthly_credits) VALUES (%L, %s);',
        p.id, trim_scale(p.monthly_credits)
    ) AS statement
FROM app.plans AS p
ORDER BY p.id;
