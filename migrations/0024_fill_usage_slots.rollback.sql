-- Loses nothing; the rollback of 0023 drops the table.

-- transactional: false
