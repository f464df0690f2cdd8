-- name: get_connection_ends :one
-- The connection as the server sees it; NULL for a Unix-domain socket.
SELECT
    host(inet_client_addr()) AS client_address,
    inet_client_port() AS client_port,
    host(inet_server_addr()) AS server_address,
    inet_server_port() AS server_port;

-- name: find_data_directory :optional
-- The server's data folder; no row without pg_read_all_settings.
SELECT s.setting AS path
FROM pg_settings AS s
WHERE s.name = 'data_directory';

-- name: list_other_databases :many
-- The databases other than :name that deleting the whole server would lose. postgres
-- counts if it has relations or schemas of users, which only a session in it sees.
SELECT d.datname AS name
FROM pg_database AS d
WHERE d.datname NOT IN ('template0', 'template1', :name)
    AND (
        d.datname <> 'postgres'
        OR (
            current_database() = 'postgres'
            AND (
                EXISTS (
                    SELECT
                    FROM pg_class AS c
                    WHERE c.oid >= 16384
                )
                OR EXISTS (
                    SELECT
                    FROM pg_namespace AS n
                    WHERE n.oid >= 16384
                )
            )
        )
    )
ORDER BY d.datname;

-- name: format_drop_database :one
-- FORCE ends the sessions that use it.
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', :name::text) AS statement;

-- name: format_create_database :one
-- From template1, as createdb does.
SELECT format('CREATE DATABASE %I', :name::text) AS statement;

-- name: get_server_process :one
-- The process that serves this transaction.
SELECT pg_backend_pid() AS pid;

-- name: get_server_mode :one
-- A standby, and a server that an operator or a provider has set to read only.
SELECT
    pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only')::boolean AS is_read_only;
