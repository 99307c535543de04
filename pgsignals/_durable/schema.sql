-- What durable channels keep on the server, version 1.  PostgreSQL 14 or newer.
--
-- {schema} is the name of the schema.  Every name is qualified, so that no search_path matters.

CREATE SCHEMA {schema};

COMMENT ON SCHEMA {schema} IS 'durable channels of pgsignals';

CREATE TABLE {schema}.meta (
    one pg_catalog.bool PRIMARY KEY DEFAULT true CHECK (one),
    version pg_catalog.int4 NOT NULL,
    -- Of the cluster: positions of another one mean nothing here.
    system_id pg_catalog.int8 NOT NULL,
    keep pg_catalog.interval NOT NULL,
    max_age pg_catalog.interval NOT NULL,
    installed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
);

INSERT INTO {schema}.meta (version, system_id, keep, max_age)
SELECT
    1,
    c.system_identifier,
    '{keep} seconds'::pg_catalog.interval,
    '{max_age} seconds'::pg_catalog.interval
FROM pg_catalog.pg_control_system() AS c;

-- What an event may hold; checked for every way of publishing.

CREATE DOMAIN {schema}.channel AS pg_catalog.text
    CONSTRAINT channel_has_1_to_63_bytes CHECK (
        pg_catalog.octet_length(value) OPERATOR(pg_catalog.>=) 1
        AND pg_catalog.octet_length(value) OPERATOR(pg_catalog.<=) 63
    );

CREATE DOMAIN {schema}.event_key AS pg_catalog.text
    CONSTRAINT key_has_at_most_1024_bytes CHECK (
        pg_catalog.octet_length(value) OPERATOR(pg_catalog.<=) 1024
    );

CREATE DOMAIN {schema}.headers AS pg_catalog.jsonb
    CONSTRAINT headers_are_an_object_of_texts CHECK (
        pg_catalog.jsonb_typeof(value) OPERATOR(pg_catalog.=) 'object'::pg_catalog.text
        AND NOT pg_catalog.jsonb_path_exists(
            value, '$.* ? (@.type() != "string")'::pg_catalog.jsonpath
        )
    );

CREATE DOMAIN {schema}.payload AS pg_catalog.text
    CONSTRAINT payload_is_small_enough CHECK (
        pg_catalog.octet_length(value) OPERATOR(pg_catalog.<=) {max_payload}
    );

-- A reader asks for what is visible now and was not visible before: txid tells.  Within one answer
-- the order is that of ids, so the sequence must never be cached: two sessions that take turns would
-- get their numbers out of turn.
CREATE TABLE {schema}.event (
    id pg_catalog.int8 NOT NULL
        GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {schema}.event_id CACHE 1),
    -- Of the top-level transaction, also inside a savepoint.
    txid pg_catalog.xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    published_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    channel {schema}.channel NOT NULL,
    key {schema}.event_key,
    headers {schema}.headers,
    payload {schema}.payload NOT NULL DEFAULT ''::pg_catalog.text,
    -- What is leased to a consumer: all events of one key are in one slot.
    slot pg_catalog.int2 NOT NULL GENERATED ALWAYS AS ((
        CASE WHEN key IS NULL THEN pg_catalog.hashint8extended(id, 0)
        ELSE pg_catalog.hashtextextended(key, 0) END OPERATOR(pg_catalog.&) 63
    )::pg_catalog.int2) STORED,
    CONSTRAINT event_pkey PRIMARY KEY (channel, id)
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 100000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000000
);

CREATE INDEX event_txid ON {schema}.event (channel, txid, id);

-- Events whose time has not come, with the ids that they are delivered with.
CREATE TABLE {schema}.delayed (
    id pg_catalog.int8 NOT NULL PRIMARY KEY
        DEFAULT pg_catalog.nextval('{schema}.event_id'::pg_catalog.regclass),
    due_at pg_catalog.timestamptz NOT NULL,
    published_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    channel {schema}.channel NOT NULL,
    key {schema}.event_key,
    headers {schema}.headers,
    payload {schema}.payload NOT NULL
);

CREATE INDEX delayed_due ON {schema}.delayed (due_at);

-- What dedup= has named, as long as its event is kept.
CREATE TABLE {schema}.dedup (
    channel {schema}.channel NOT NULL,
    dedup pg_catalog.text NOT NULL,
    event_id pg_catalog.int8,
    CONSTRAINT dedup_pkey PRIMARY KEY (channel, dedup)
);

CREATE INDEX dedup_event ON {schema}.dedup (event_id);

CREATE FUNCTION {schema}.publish(
    channel pg_catalog.text,
    payload pg_catalog.text DEFAULT ''::pg_catalog.text,
    key pg_catalog.text DEFAULT NULL::pg_catalog.text,
    headers pg_catalog.jsonb DEFAULT NULL::pg_catalog.jsonb,
    delay pg_catalog.interval DEFAULT NULL::pg_catalog.interval,
    dedup pg_catalog.text DEFAULT NULL::pg_catalog.text,
    ordered pg_catalog.bool DEFAULT false
) RETURNS pg_catalog.int8 LANGUAGE plpgsql AS $publish$
#variable_conflict use_column
DECLARE
    new_id pg_catalog.int8;
BEGIN
    IF ordered THEN
        IF key IS NULL THEN
            RAISE EXCEPTION 'ordered needs a key' USING ERRCODE = 'null_value_not_allowed';
        END IF;
        -- A statement of its own, before the id is taken: so ids are in the order of the turns.
        PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(
            channel OPERATOR(pg_catalog.||) '/'::pg_catalog.text OPERATOR(pg_catalog.||) key,
            7::pg_catalog.int8
        ));
    END IF;
    IF dedup IS NOT NULL THEN
        INSERT INTO {schema}.dedup (channel, dedup) VALUES (channel, dedup)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    IF delay OPERATOR(pg_catalog.>) '0'::pg_catalog.interval THEN
        INSERT INTO {schema}.delayed (due_at, channel, key, headers, payload)
        VALUES (
            pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) delay,
            channel, key, headers, payload
        )
        RETURNING id INTO new_id;
    ELSIF delay OPERATOR(pg_catalog.<) '0'::pg_catalog.interval THEN
        RAISE EXCEPTION 'delay must be at least 0' USING ERRCODE = 'invalid_parameter_value';
    ELSE
        INSERT INTO {schema}.event (channel, key, headers, payload)
        VALUES (channel, key, headers, payload)
        RETURNING id INTO new_id;
    END IF;
    IF dedup IS NOT NULL THEN
        UPDATE {schema}.dedup AS d SET event_id = new_id
        WHERE d.channel OPERATOR(pg_catalog.=) publish.channel
        AND d.dedup OPERATOR(pg_catalog.=) publish.dedup;
    END IF;
    RETURN new_id;
END
$publish$;

CREATE FUNCTION {schema}.publish_many(
    channel pg_catalog.text,
    payloads pg_catalog.text[],
    keys pg_catalog.text[] DEFAULT NULL::pg_catalog.text[]
) RETURNS pg_catalog.int8 LANGUAGE plpgsql AS $publish_many$
#variable_conflict use_column
DECLARE
    published pg_catalog.int8;
BEGIN
    IF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.<>) pg_catalog.cardinality(payloads) THEN
        RAISE EXCEPTION 'there must be as many keys as payloads'
            USING ERRCODE = 'array_subscript_error';
    END IF;
    INSERT INTO {schema}.event (channel, key, payload)
    SELECT publish_many.channel, u.key, u.payload
    FROM ROWS FROM (
        pg_catalog.unnest(payloads), pg_catalog.unnest(keys)
    ) WITH ORDINALITY AS u(payload, key, place)
    ORDER BY u.place;
    GET DIAGNOSTICS published = ROW_COUNT;
    RETURN published;
END
$publish_many$;
