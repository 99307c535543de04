-- Runs at every start; running it again is harmless.  Names of PostgreSQL's own are qualified, so
-- that no object that other roles have put on the search_path is called in their place.
CREATE TABLE IF NOT EXISTS live_orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer pg_catalog.text NOT NULL,
    item pg_catalog.text NOT NULL,
    quantity int NOT NULL DEFAULT 1 CHECK (quantity OPERATOR(pg_catalog.>) 0),
    cents bigint NOT NULL CHECK (cents OPERATOR(pg_catalog.>=) 0),
    state pg_catalog.text NOT NULL DEFAULT 'new',
    placed pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
);

-- The payload is the id, not the row: payloads are limited to 7,999 bytes, rows are not, and a
-- payload that is too long would fail the INSERT.  0, which is not an id, means all orders.
CREATE OR REPLACE FUNCTION live_orders_tell() RETURNS trigger LANGUAGE plpgsql
SET search_path = '' AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('live_orders', coalesce(NEW.id, OLD.id, 0)::pg_catalog.text);
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON live_orders
    FOR EACH ROW EXECUTE FUNCTION live_orders_tell();
CREATE OR REPLACE TRIGGER tell_all AFTER TRUNCATE ON live_orders
    FOR EACH STATEMENT EXECUTE FUNCTION live_orders_tell();
