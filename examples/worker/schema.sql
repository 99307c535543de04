-- Runs at every start of a worker, repeatedly and concurrently.  Names of PostgreSQL's own are
-- qualified, so that no object that other roles have put on the search_path is called.
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('pgsignals example: jobs'));

CREATE TABLE IF NOT EXISTS jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payload pg_catalog.text NOT NULL,
    state pg_catalog.text NOT NULL DEFAULT 'ready'
        CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['ready', 'done', 'failed'])),
    finished pg_catalog.timestamptz,
    worker pg_catalog.text,
    error pg_catalog.text
);
CREATE INDEX IF NOT EXISTS jobs_ready ON jobs (id)
    WHERE state OPERATOR(pg_catalog.=) 'ready';

CREATE OR REPLACE FUNCTION jobs_tell() RETURNS trigger LANGUAGE plpgsql
SET search_path = '' AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('jobs', '');
    RETURN NULL;
END $$;

-- Once per statement: a thousand jobs need one call. The second is for a job that is retried.
CREATE OR REPLACE TRIGGER tell_new AFTER INSERT ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_tell();
CREATE OR REPLACE TRIGGER tell_again AFTER UPDATE OF state ON jobs
    FOR EACH ROW WHEN (NEW.state OPERATOR(pg_catalog.=) 'ready') EXECUTE FUNCTION jobs_tell();
