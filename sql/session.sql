-- pyapp.connect and pyapp.pool run this once in each new session, except behind a
-- pooler. Other settings are connection options: pyapp/_core/connection.py. Every
-- name is qualified and operators are called as functions, because search_path is set
-- here.
SELECT
    -- Any other value disables triggers and foreign keys. Raises an error if the role
    -- may not set it.
    CASE
        WHEN pg_catalog.textne(
            pg_catalog.current_setting('session_replication_role'), 'origin'
        )
            THEN pg_catalog.set_config('session_replication_role', 'origin', FALSE)
    END AS replication_role,
    -- Exists since the minor releases of August 2024. It can forbid the use of views.
    CASE
        WHEN pg_catalog.textne(
            pg_catalog.current_setting('restrict_nonsystem_relation_kind', TRUE), ''
        )
            THEN
                pg_catalog.set_config('restrict_nonsystem_relation_kind', '', FALSE)
    END AS restriction,
    -- A search_path that names pg_catalog may list other schemas before it.
    CASE
        WHEN pg_catalog.int4gt(
            pg_catalog.strpos(pg_catalog.current_setting('search_path'), 'pg_catalog'),
            0
        )
            THEN
                pg_catalog.set_config(
                    'search_path',
                    pg_catalog.concat(
                        'pg_catalog, ', pg_catalog.current_setting('search_path')
                    ),
                    FALSE
                )
    END AS search_path;
