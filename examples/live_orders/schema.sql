-- Run at every start; may be run again.
CREATE TABLE IF NOT EXISTS live_orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer text NOT NULL,
    item text NOT NULL,
    quantity int NOT NULL DEFAULT 1 CHECK (quantity > 0),
    cents bigint NOT NULL CHECK (cents >= 0),
    state text NOT NULL DEFAULT 'new',
    placed timestamptz NOT NULL DEFAULT now()
);

-- The payload is the id, not the row: payloads are limited to 7,999 bytes, rows are not.
CREATE OR REPLACE FUNCTION live_orders_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('live_orders', coalesce(NEW.id, OLD.id)::text);
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON live_orders
    FOR EACH ROW EXECUTE FUNCTION live_orders_tell();
