-- name: list_tables :many
-- Tables and views without partitions.
SELECT
    t.relname AS name,
    obj_description(t.oid, 'pg_class') AS comment,
    pg_get_partkeydef(t.oid) AS partition_key
FROM pg_class AS t
WHERE t.relnamespace = to_regnamespace('app')
    AND t.relkind IN ('r', 'p', 'v')
    AND NOT t.relispartition
ORDER BY t.relname;

-- name: list_columns :many
-- In the order of their tables.
SELECT
    t.relname AS table_name,
    a.attname AS name,
    format_type(a.atttypid, a.atttypmod) AS type,
    NOT a.attnotnull AS is_nullable,
    a.attidentity <> '' AS is_identity,
    a.attgenerated <> '' AS is_generated,
    pg_get_expr(d.adbin, d.adrelid) AS expression,
    col_description(a.attrelid, a.attnum) AS comment
FROM pg_attribute AS a
INNER JOIN pg_class AS t ON a.attrelid = t.oid
LEFT JOIN pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE t.relnamespace = to_regnamespace('app')
    AND t.relkind IN ('r', 'p', 'v')
    AND NOT t.relispartition
    AND a.attnum > 0
    AND NOT a.attisdropped
ORDER BY t.relname, a.attnum;

-- name: list_constraints :many
-- Without NOT NULL, which is a property of its column.
SELECT
    t.relname AS table_name,
    c.conname AS name,
    c.contype AS kind,
    f.relname AS referenced_table,
    pg_get_constraintdef(c.oid) AS definition,
    (
        SELECT array_agg(a.attname::text ORDER BY k.position)
        FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, position)
        INNER JOIN pg_attribute AS a ON k.attnum = a.attnum
        WHERE a.attrelid = c.conrelid
    ) AS columns
FROM pg_constraint AS c
INNER JOIN pg_class AS t ON c.conrelid = t.oid
LEFT JOIN pg_class AS f ON c.confrelid = f.oid
WHERE t.relnamespace = to_regnamespace('app')
    AND NOT t.relispartition
    AND c.contype IN ('p', 'u', 'f', 'c', 'x')
ORDER BY t.relname, strpos('puxfc', c.contype::text), c.conname;

-- name: list_indexes :many
-- With the constraint that owns the index, if any.
SELECT
    t.relname AS table_name,
    x.relname AS name,
    i.indisunique AS is_unique,
    c.conname AS constraint_name,
    pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index AS i
INNER JOIN pg_class AS x ON i.indexrelid = x.oid
INNER JOIN pg_class AS t ON i.indrelid = t.oid
LEFT JOIN pg_constraint AS c
    ON i.indexrelid = c.conindid AND c.contype IN ('p', 'u', 'x')
WHERE t.relnamespace = to_regnamespace('app')
    AND NOT x.relispartition
ORDER BY t.relname, x.relname;

-- name: list_triggers :many
-- Without the internal triggers of foreign keys.
SELECT
    t.relname AS table_name,
    g.tgname AS name,
    pg_get_triggerdef(g.oid) AS definition
FROM pg_trigger AS g
INNER JOIN pg_class AS t ON g.tgrelid = t.oid
WHERE t.relnamespace = to_regnamespace('app')
    AND NOT t.relispartition
    AND NOT g.tgisinternal
ORDER BY t.relname, g.tgname;

-- name: list_functions :many
-- Ordered by name and arguments.
SELECT
    p.proname AS name,
    pg_get_function_identity_arguments(p.oid) AS arguments,
    pg_get_function_result(p.oid) AS result,
    COALESCE(pg_get_function_sqlbody(p.oid), p.prosrc) AS body,
    obj_description(p.oid, 'pg_proc') AS comment
FROM pg_proc AS p
WHERE p.pronamespace = to_regnamespace('app')
ORDER BY p.proname, p.oid::regprocedure::text;
