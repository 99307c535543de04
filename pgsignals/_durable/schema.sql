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

-- Reading.  A position is a snapshot: what is visible in s1 is done; what is visible in s2 and not in
-- s1 is the batch under way, done up to last_id.
--
-- The next page of the batch from s1 to s2, after last_id; without s2 a batch begins.  Every row
-- repeats s2 and, for a large batch, the bounds of its ids, lo and hi, which the next call is given
-- back.  A page that is not full ends the batch; one that is empty is a row without an id.
--
-- It refuses a transaction that has written, whose own events would count as read, and a position
-- from the future, which another cluster or a lost transaction has left.  Plans are forced, as the
-- planner knows nothing of the distribution of xid8: it would sort the whole batch for each page.
CREATE FUNCTION {schema}.fetch(
    channel pg_catalog.text,
    slots pg_catalog.int8,
    s1 pg_catalog.pg_snapshot,
    s2 pg_catalog.pg_snapshot,
    last_id pg_catalog.int8,
    lo pg_catalog.int8,
    hi pg_catalog.int8,
    most pg_catalog.int4,
    few pg_catalog.int4 DEFAULT 4000
) RETURNS TABLE (
    batch pg_catalog.pg_snapshot,
    low pg_catalog.int8,
    high pg_catalog.int8,
    id pg_catalog.int8,
    key pg_catalog.text,
    slot pg_catalog.int2,
    published_at pg_catalog.timestamptz,
    headers pg_catalog.jsonb,
    payload pg_catalog.text
) LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET max_parallel_workers_per_gather = 0
SET jit = off
AS $fetch$
#variable_conflict use_variable
DECLARE
    x1 pg_catalog.xid8;
    x2 pg_catalog.xid8;
    ended pg_catalog.xid8[];
    found_few pg_catalog.int8;
    given pg_catalog.int8;
BEGIN
    IF s2 IS NULL THEN
        IF pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL THEN
            RAISE EXCEPTION 'events cannot be fetched in a transaction that has written'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        s2 := pg_catalog.pg_current_snapshot();
        last_id := 0;
        lo := NULL;
    END IF;
    x1 := pg_catalog.pg_snapshot_xmax(s1);
    x2 := pg_catalog.pg_snapshot_xmax(s2);
    IF x1 OPERATOR(pg_catalog.>) x2 THEN
        RAISE EXCEPTION 'the position is from the future: of another cluster, or of lost transactions'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- Those that ran in s1 and have ended since: probed one by one, as any list would be scanned.
    ended := ARRAY(
        SELECT r.xid FROM pg_catalog.pg_snapshot_xip(s1) AS r(xid)
        WHERE pg_catalog.pg_visible_in_snapshot(r.xid, s2)
    );
    IF lo IS NULL THEN
        SELECT pg_catalog.count(*) INTO found_few FROM (
            SELECT 1 FROM {schema}.event AS e
            WHERE e.channel OPERATOR(pg_catalog.=) channel
            AND e.txid OPERATOR(pg_catalog.>=) x1 AND e.txid OPERATOR(pg_catalog.<) x2
            LIMIT few OPERATOR(pg_catalog.+) 1
        ) AS q;
        IF found_few OPERATOR(pg_catalog.=) 0
            AND pg_catalog.cardinality(ended) OPERATOR(pg_catalog.=) 0
        THEN
            batch := s2;
            low := 0;
            RETURN NEXT;
            RETURN;
        END IF;
        lo := 0;
        hi := NULL;
        IF found_few OPERATOR(pg_catalog.>) few THEN
            SELECT pg_catalog.max(e.id) INTO hi FROM {schema}.event AS e
            WHERE e.channel OPERATOR(pg_catalog.=) channel
            AND e.txid OPERATOR(pg_catalog.>=) x1 AND e.txid OPERATOR(pg_catalog.<) x2;
            IF last_id OPERATOR(pg_catalog.>) 0 THEN
                lo := last_id;
            ELSE  -- OFFSET 0: else the planner walks the primary key through all of history
                SELECT pg_catalog.min(q.id) OPERATOR(pg_catalog.-) 1 INTO lo FROM (
                    SELECT e.id FROM {schema}.event AS e
                    WHERE e.channel OPERATOR(pg_catalog.=) channel
                    AND e.txid OPERATOR(pg_catalog.>=) x1 AND e.txid OPERATOR(pg_catalog.<) x2
                    OFFSET 0
                ) AS q;
            END IF;
        END IF;
    END IF;
    IF hi IS NULL THEN  -- few: by transaction, then sorted
        RETURN QUERY
        SELECT s2, lo, hi, q.id, q.key::pg_catalog.text, q.slot, q.published_at,
            q.headers::pg_catalog.jsonb, q.payload::pg_catalog.text
        FROM (
            (
                SELECT e.* FROM {schema}.event AS e
                WHERE e.channel OPERATOR(pg_catalog.=) channel
                AND e.txid OPERATOR(pg_catalog.>=) x1 AND e.txid OPERATOR(pg_catalog.<) x2
                AND e.id OPERATOR(pg_catalog.>) last_id
                AND (slots OPERATOR(pg_catalog.>>) e.slot) OPERATOR(pg_catalog.&) 1
                    OPERATOR(pg_catalog.=) 1
                AND pg_catalog.pg_visible_in_snapshot(e.txid, s2)
                OFFSET 0
            )
            UNION ALL
            (
                SELECT f.* FROM pg_catalog.unnest(ended) AS t(xid), LATERAL (
                    SELECT e.* FROM {schema}.event AS e
                    WHERE e.channel OPERATOR(pg_catalog.=) channel
                    AND e.txid OPERATOR(pg_catalog.=) t.xid
                    AND e.id OPERATOR(pg_catalog.>) last_id
                    AND (slots OPERATOR(pg_catalog.>>) e.slot) OPERATOR(pg_catalog.&) 1
                        OPERATOR(pg_catalog.=) 1
                    ORDER BY e.id LIMIT most
                ) AS f
            )
        ) AS q ORDER BY q.id LIMIT most;
    ELSE  -- many: a walk over the ids
        RETURN QUERY
        SELECT s2, lo, hi, q.id, q.key::pg_catalog.text, q.slot, q.published_at,
            q.headers::pg_catalog.jsonb, q.payload::pg_catalog.text
        FROM (
            (
                SELECT e.* FROM {schema}.event AS e
                WHERE e.channel OPERATOR(pg_catalog.=) channel
                AND e.id OPERATOR(pg_catalog.>) last_id AND e.id OPERATOR(pg_catalog.>) lo
                AND e.id OPERATOR(pg_catalog.<=) hi
                AND (slots OPERATOR(pg_catalog.>>) e.slot) OPERATOR(pg_catalog.&) 1
                    OPERATOR(pg_catalog.=) 1
                AND pg_catalog.pg_visible_in_snapshot(e.txid, s2)
                AND pg_catalog.pg_visible_in_snapshot(e.txid, s1) IS FALSE
                AND (e.txid OPERATOR(pg_catalog.>=) x1) IS TRUE
                ORDER BY e.id LIMIT most
            )
            UNION ALL
            (
                SELECT f.* FROM pg_catalog.unnest(ended) AS t(xid), LATERAL (
                    SELECT e.* FROM {schema}.event AS e
                    WHERE e.channel OPERATOR(pg_catalog.=) channel
                    AND e.txid OPERATOR(pg_catalog.=) t.xid
                    AND e.id OPERATOR(pg_catalog.>) last_id
                    AND (slots OPERATOR(pg_catalog.>>) e.slot) OPERATOR(pg_catalog.&) 1
                        OPERATOR(pg_catalog.=) 1
                    ORDER BY e.id LIMIT most
                ) AS f
            )
        ) AS q ORDER BY q.id LIMIT most;
    END IF;
    GET DIAGNOSTICS given = ROW_COUNT;
    IF given OPERATOR(pg_catalog.=) 0 THEN
        batch := s2;
        low := lo;
        high := hi;
        RETURN NEXT;
    END IF;
END
$fetch$;
