"""Sessions with servers: the only room that knows psycopg and sockets."""
