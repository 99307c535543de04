-- Run at every start of a worker; may be run again, and by several at once.
SELECT pg_advisory_xact_lock(hashtext('pgsignals example: jobs'));

CREATE TABLE IF NOT EXISTS jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payload text NOT NULL,
    state text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'done', 'failed')),
    finished timestamptz,
    worker text,
    error text
);
CREATE INDEX IF NOT EXISTS jobs_ready ON jobs (id) WHERE state = 'ready';

CREATE OR REPLACE FUNCTION jobs_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('jobs', '');
    RETURN NULL;
END $$;

-- Once per statement: a thousand jobs need one call. The second is for a job that is tried again.
CREATE OR REPLACE TRIGGER tell_new AFTER INSERT ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_tell();
CREATE OR REPLACE TRIGGER tell_again AFTER UPDATE OF state ON jobs
    FOR EACH ROW WHEN (NEW.state = 'ready') EXECUTE FUNCTION jobs_tell();
