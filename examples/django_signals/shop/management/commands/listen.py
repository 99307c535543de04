"""``python manage.py listen``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

import pgsignals

from ...listening import make_reactor


class Command(BaseCommand):
    """Runs the handlers that apps have registered with ``@on_channel``."""

    help = "Run the handlers of @on_channel until SIGINT or SIGTERM."

    def add_arguments(self, parser: CommandParser) -> None:
        """Which database to listen on."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="its alias in DATABASES")

    def handle(self, *, database: str, **_: Any) -> None:
        """Run in the foreground."""
        reactor = make_reactor(database)

        @reactor.connected.connect
        def say(db: pgsignals.Database, **_: object) -> None:
            (status,) = reactor.status().databases
            self.stdout.write(f"{db.name}: listening to {', '.join(status.channels)}")

        try:
            reactor.run()
        except pgsignals.Error as error:
            raise CommandError(str(error)) from error
