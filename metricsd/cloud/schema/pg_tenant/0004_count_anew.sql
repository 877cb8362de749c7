-- Events of retracted imports used to count for the older API. Where `stale` is set, the next look empties the sums and
-- counts anew; a retraction sets it, and so does this step.

ALTER TABLE legacy_fold ADD COLUMN stale INTEGER NOT NULL DEFAULT 0;
UPDATE legacy_fold SET stale = 1, anew = anew + 1;
