-- name: upsert_fingerprint :optional
-- Returns no row for the id of a user; fingerprints_refuse_user_id would raise an
-- error.
INSERT INTO app.fingerprints AS f (id, sig_hash)
SELECT
    COALESCE(:fingerprint_id, gen_random_uuid()) AS id,
    :sig_hash AS sig_hash
WHERE NOT EXISTS (
    SELECT
    FROM app.users AS u
    WHERE u.id = :fingerprint_id
)
ON CONFLICT ON CONSTRAINT fingerprints_pkey DO UPDATE SET
    sig_hash = COALESCE(excluded.sig_hash, f.sig_hash)
RETURNING
    f.id,
    f.sig_hash,
    f.base_quota,
    f.created_at;

-- name: get_fingerprint :one
-- By primary key.
SELECT
    f.id,
    f.sig_hash,
    f.base_quota,
    f.created_at
FROM app.fingerprints AS f
WHERE f.id = :fingerprint_id;

-- name: list_user_fingerprints :many
-- By id. All of them: a user has few, and the function finds them together.
SELECT
    f.fingerprint_id,
    f.is_shared
FROM app.list_user_fingerprints(:user_id) AS f
ORDER BY f.fingerprint_id
LIMIT :limit;
