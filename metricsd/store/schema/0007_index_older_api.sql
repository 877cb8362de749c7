-- Clients of the older API ask for the sessions of one person or of some days. Without these, each such question reads
-- every document that was ever kept. Columns instead of expressions, because a schema is not trusted to call functions.
-- The index for the calls of one session is made where that API is served (store/older_api.py): it is a tenth of a store.

ALTER TABLE legacy_extra ADD COLUMN who TEXT;           -- whose session a client said it is
ALTER TABLE legacy_extra ADD COLUMN began INTEGER;      -- when a client said that it began, microseconds UTC
UPDATE legacy_extra SET who = json_extract(body, '$.user'), began = json_extract(body, '$.start_us')
WHERE kind = 'session';
CREATE INDEX legacy_extra_who ON legacy_extra (who) WHERE who IS NOT NULL;
CREATE INDEX legacy_extra_began ON legacy_extra (began) WHERE began IS NOT NULL;
