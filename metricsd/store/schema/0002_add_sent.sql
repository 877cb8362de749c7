-- A push may arrive although its answer is lost. What was offered is remembered, because the writer's id does not tell
-- this device from a clone with the same id, or from itself before its store was put back to a copy.
ALTER TABLE record ADD COLUMN sent TEXT;  -- marks of what was offered on top of the base, spaces between them
